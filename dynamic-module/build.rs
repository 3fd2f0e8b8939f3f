//! Links the unwinder statically. rustc asks for `libgcc_s`, which an image without a compiler may lack. So the linker finds a
//! script of this name first, which names the static library instead.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    if let Some(folder) = std::env::var_os("OUT_DIR").map(PathBuf::from) {
        std::fs::write(folder.join("libgcc_s.so"), "INPUT(-lgcc_eh)\n")?;
        println!("cargo::rustc-link-search=native={}", folder.display());
    }
    Ok(())
}
