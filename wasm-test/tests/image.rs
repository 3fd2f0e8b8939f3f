//! `make image`: an OCI image with the module, its bill of materials and its checksums.

use std::time::Duration;

use serde_json::{Value, json};
use wasm_test::process::{Folder, argument, run};
use wasm_test::repository;

const FILES: [&str; 4] = ["apexmcp-auth.oci.tar", "apexmcp-auth.cdx.json", "apexmcp-auth.sha256", "apexmcp-auth.digest"];

#[tokio::test]
async fn the_image_is_reproducible_and_contains_the_module() {
    let first = made().await;
    // Wait for more than a second. If the time were part of the image, the second image would differ.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let second = made().await;
    for name in FILES {
        assert!(bytes(&first, name) == bytes(&second, name), "{name} differs in the second image");
    }

    let folder = argument(&first.file("")).to_owned();
    run("sh", &["-c", &format!("cd {folder} && sha256sum --check apexmcp-auth.sha256 && tar -xf apexmcp-auth.oci.tar")]).await;
    assert_eq!(json_of(&first, "oci-layout"), json!({"imageLayoutVersion": "1.0.0"}));
    let index = json_of(&first, "index.json");
    let manifest_digest = first.read("apexmcp-auth.digest");
    assert_eq!(index["manifests"][0]["digest"], manifest_digest.trim());
    let manifest: Value = serde_json::from_slice(&blob(&first, &index["manifests"][0])).expect("JSON");
    assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    let config: Value = serde_json::from_slice(&blob(&first, &manifest["config"])).expect("JSON");

    // Istio and Envoy Gateway look for the last layer. It must have this media type and contain this file.
    let [layer] = &manifest["layers"].as_array().expect("layers")[..] else { panic!("one layer: {manifest}") };
    assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    std::fs::write(first.file("layer.tar.gz"), blob(&first, layer)).expect("the layer is written");
    let unpack = "gzip --decompress layer.tar.gz && tar -tf layer.tar && tar -xf layer.tar";
    assert_eq!(run("sh", &["-c", &format!("cd {folder} && {unpack}")]).await, "plugin.wasm\n");
    assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&bytes(&first, "layer.tar"))]));
    let module = std::fs::read(repository().join("dist/apexmcp_auth.wasm")).expect("the module");
    assert!(bytes(&first, "plugin.wasm") == module, "the image contains another module");

    let bill = json_of(&first, "apexmcp-auth.cdx.json");
    let module_hash = format!("sha256:{}", bill["metadata"]["component"]["hashes"][0]["content"].as_str().expect("a hash"));
    assert_eq!(module_hash, digest(&module));
    let has = |wanted: &str| bill["components"].as_array().expect("components").iter().any(|found| found["name"] == wanted);
    assert!(has("jwt-simple") && has("proxy-wasm") && has("rsa"), "the bill of materials lacks a dependency of the module");
    assert!(!has("proptest") && !has("tokio"), "the bill of materials contains a dependency of the tests");
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
