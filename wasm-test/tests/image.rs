//! `make image`: an OCI image of each module, its bill of materials and its checksums.

use std::time::Duration;

use serde_json::{Value, json};
use wasm_test::process::{Folder, argument, run};
use wasm_test::repository;

const FILES: [&str; 4] = ["oci.tar", "cdx.json", "sha256", "digest"];

#[tokio::test]
async fn the_images_are_reproducible_and_contain_the_modules() {
    let first = made().await;
    // Wait for more than a second. If the time were part of the image, the second image would differ.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let second = made().await;
    let both = [
        ("apexmcp-auth", "apexmcp_auth.wasm", "plugin.wasm"),
        ("apexmcp-auth-native", "libapexmcp_auth.so", "libapexmcp_auth.so"),
    ];
    for (image, module, packed_as) in both {
        for file in FILES {
            let name = format!("{image}.{file}");
            assert!(bytes(&first, &name) == bytes(&second, &name), "{name} differs in the second image");
        }
        contains(&first, image, module, packed_as).await;
    }
    let wasm = components(&first, "apexmcp-auth");
    let native = components(&first, "apexmcp-auth-native");
    let has = |all: &[String], wanted: &str| all.iter().any(|name| name == wanted);
    assert!(["jwt-simple", "proxy-wasm", "rsa"].iter().all(|name| has(&wasm, name)), "a dependency is missing: {wasm:?}");
    assert!(["aws-lc-rs", "papaya"].iter().all(|name| has(&native, name)), "a dependency is missing: {native:?}");
    for unwanted in ["proptest", "tokio", "fastrand"] {
        assert!(!has(&wasm, unwanted) && !has(&native, unwanted), "{unwanted} is a dependency of the tests");
    }
}

/// Checks that the image has one layer with the module of `dist/`, and that the other files describe it.
async fn contains(folder: &Folder, image: &str, module: &str, packed_as: &str) {
    let path = argument(&folder.file("")).to_owned();
    run("sh", &["-c", &format!("cd {path} && sha256sum --check {image}.sha256 && tar -xf {image}.oci.tar")]).await;
    assert_eq!(json_of(folder, "oci-layout"), json!({"imageLayoutVersion": "1.0.0"}));
    let index = json_of(folder, "index.json");
    assert_eq!(index["manifests"][0]["digest"], folder.read(&format!("{image}.digest")).trim());
    let manifest: Value = serde_json::from_slice(&blob(folder, &index["manifests"][0])).expect("JSON");
    assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    let config: Value = serde_json::from_slice(&blob(folder, &manifest["config"])).expect("JSON");

    // Istio and Envoy Gateway look for the last layer. It must have this media type and contain this file.
    let [layer] = &manifest["layers"].as_array().expect("layers")[..] else { panic!("one layer: {manifest}") };
    assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    std::fs::write(folder.file("layer.tar.gz"), blob(folder, layer)).expect("the layer is written");
    let unpack = "gzip --force --decompress layer.tar.gz && tar -tf layer.tar && tar -xf layer.tar";
    assert_eq!(run("sh", &["-c", &format!("cd {path} && {unpack}")]).await, format!("{packed_as}\n"));
    assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&bytes(folder, "layer.tar"))]));
    let module = std::fs::read(repository().join("dist").join(module)).expect("the module");
    assert!(bytes(folder, packed_as) == module, "the image {image} contains another module");

    let bill = json_of(folder, &format!("{image}.cdx.json"));
    let module_hash = format!("sha256:{}", bill["metadata"]["component"]["hashes"][0]["content"].as_str().expect("a hash"));
    assert_eq!(module_hash, digest(&module));
}

/// The names of the crates in the bill of materials.
fn components(folder: &Folder, image: &str) -> Vec<String> {
    let bill = json_of(folder, &format!("{image}.cdx.json"));
    let components = bill["components"].as_array().expect("components");
    components.iter().map(|found| found["name"].as_str().expect("a name").to_owned()).collect()
}

async fn made() -> Folder {
    let folder = Folder::new().expect("a folder");
    run("python", &["scripts/image", argument(&folder.file(""))]).await;
    folder
}

/// The blob of a descriptor. Checks its size and its digest.
fn blob(folder: &Folder, descriptor: &Value) -> Vec<u8> {
    let named = descriptor["digest"].as_str().expect("a digest");
    let content = bytes(folder, &format!("blobs/{}", named.replace(':', "/")));
    assert_eq!((digest(&content).as_str(), json!(content.len())), (named, descriptor["size"].clone()));
    content
}

fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(hmac_sha256::Hash::hash(content)))
}

fn bytes(folder: &Folder, name: &str) -> Vec<u8> {
    std::fs::read(folder.file(name)).unwrap_or_else(|problem| panic!("{name}: {problem}"))
}

fn json_of(folder: &Folder, name: &str) -> Value {
    serde_json::from_slice(&bytes(folder, name)).expect("JSON")
}
