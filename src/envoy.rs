//! Envoy as the core's [`Host`] and the shell's [`Envoy`](apexmcp_shell::Envoy). RSA runs in Envoy's BoringSSL through foreign functions. If Envoy lacks a function, the
//! module computes the result itself.

use std::cell::RefCell;

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use proxy_wasm::types::Status;

use crate::hostcalls::{self, CAS_ATTEMPTS};
use crate::metrics::Numbers;
use apexmcp_core::access_token::{self, AccessTokenClaims};
use apexmcp_core::denial::LocalReply;
use apexmcp_core::exchange::Question;
use apexmcp_core::host::{Host, Shared, Update};
use apexmcp_core::jose::compact::CompactJws;
use apexmcp_core::jose::jwk::RsaPublicKey;
use apexmcp_core::jose::signature::verify_in_rust;
use apexmcp_core::limits::service;
use apexmcp_core::policy::service::SdsSecret;
use apexmcp_core::request::{RequestHead, RequestTrailers};
use apexmcp_core::route::{RouteInvalid, RouteSettings};
use apexmcp_core::serialized_map::SerializedMap;
use apexmcp_core::signing_key::SigningKey;
use apexmcp_core::time::UnixTime;
use apexmcp_shell::{Call, FILTER_STATE, Metric};

const VERIFY: &str = "verify_signature";
const SIGN: &str = "sign";
const HASH_FUNCTION: &str = "sha256";

/// `envoy.source.extensions.common.wasm.VerifySignatureArguments`, serialized without copies, because each new token needs one.
fn verify_arguments(key: &RsaPublicKey, jws: &CompactJws<'_>) -> Vec<u8> {
    let fields = [(1, HASH_FUNCTION.as_bytes()), (2, key.spki()), (3, jws.signature()), (4, jws.signing_input().as_bytes())];
    // A tag has one byte. A length has at most three bytes, because a token has at most 16 KiB.
    let mut message = Vec::with_capacity(fields.iter().map(|(_, value)| value.len().saturating_add(4)).sum());
    for (tag, value) in fields {
        encode_key(tag, WireType::LengthDelimited, &mut message);
        encode_varint(value.len().try_into().unwrap_or(u64::MAX), &mut message);
        message.extend_from_slice(value);
    }
    message
}

/// `envoy.source.extensions.common.wasm.VerifySignatureResult`
#[derive(Message)]
struct VerifyResult {
    #[prost(bool, tag = "1")]
    result: bool,
}

/// `envoy.source.extensions.common.wasm.SignArguments`
#[derive(Message)]
struct SignArguments {
    #[prost(string, tag = "1")]
    hash_function: String,
    #[prost(bytes, tag = "3")]
    text: Vec<u8>,
    #[prost(string, tag = "4")]
    private_key_pem: String,
}

/// `envoy.source.extensions.common.wasm.SignResult`
#[derive(Message)]
struct SignResult {
    #[prost(bool, tag = "1")]
    result: bool,
    #[prost(bytes, tag = "2")]
    signature: Vec<u8>,
}

/// The namespace of this filter in a route's `filter_metadata`.
const METADATA_NAMESPACE: &str = "apexmcp";

/// Envoy, as one VM sees it.
pub(crate) struct Envoy {
    /// The id of the root context.
    root: u32,
    /// Whether this Envoy has the foreign function [`VERIFY`].
    verifies: bool,
    /// Whether this Envoy has the foreign function [`SIGN`].
    signs: bool,
    numbers: RefCell<Numbers>,
}

impl Envoy {
    /// Asks Envoy for its foreign functions, once for the VM.
    pub(crate) fn new(root: u32) -> Self {
        let has = |function| !matches!(hostcalls::call(function, &[]), Err(Status::NotFound));
        Self { root, verifies: has(VERIFY), signs: has(SIGN), numbers: RefCell::default() }
    }

    /// A log line that says where signatures are verified and made.
    pub(crate) fn describe(&self) -> String {
        let by = |host| if host { "Envoy" } else { "the module itself, slowly: this Envoy can't" };
        format!("signatures are verified by {} and made by {}", by(self.verifies), by(self.signs))
    }
}

impl Host for Envoy {
    fn verify(&self, key: &RsaPublicKey, jws: &CompactJws<'_>) -> bool {
        if !self.verifies {
            return verify_in_rust(key, jws);
        }
        let answer = hostcalls::call(VERIFY, &verify_arguments(key, jws));
        answer.is_ok_and(|bytes| VerifyResult::decode(bytes.as_slice()).is_ok_and(|answer| answer.result))
    }

    fn sign(&self, key: &SigningKey, claims: &AccessTokenClaims<'_>) -> Option<String> {
        if !self.signs {
            return key.sign_in_rust(claims);
        }
        let signing_input = claims.signing_input(key.kid())?;
        let arguments = SignArguments {
            hash_function: HASH_FUNCTION.to_owned(),
            text: signing_input.as_bytes().to_vec(),
            private_key_pem: key.pem().to_owned(),
        };
        let answer = hostcalls::call(SIGN, &arguments.encode_to_vec()).ok()?;
        let answer = SignResult::decode(answer.as_slice()).ok().filter(|answer| answer.result)?;
        Some(access_token::assemble(&signing_input, &answer.signature))
    }

    fn random(&self) -> Option<[u8; 16]> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).ok()?;
        Some(bytes)
    }

    fn shared(&self, name: &str) -> Option<Shared> {
        let (value, cas) = hostcalls::shared_data(name);
        value.map(|bytes| Shared { bytes, revision: cas.number() })
    }

    fn update(&self, name: &str, change: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>) -> Update {
        for _ in 0..CAS_ATTEMPTS {
            let (value, cas) = hostcalls::shared_data(name);
            match change(value.as_deref().unwrap_or_default()) {
                None => return Update::Unchanged,
                Some(changed) if hostcalls::set_shared_data(name, &changed, cas) => return Update::Changed,
                Some(_) => {}
            }
        }
        Update::Contended
    }
}

impl apexmcp_shell::Envoy for Envoy {
    const SEES_OWN_REPLIES: bool = true;
    const HOLDS_BODIES: Option<bool> = None;

    fn follow_secret(&self, _secret: &SdsSecret) -> Result<(), &'static str> {
        Err("only the native module can read a secret of Envoy: use token_env")
    }

    fn secret(&self) -> Option<Vec<u8>> {
        None
    }

    fn now(&self) -> UnixTime {
        hostcalls::now()
    }

    fn enter(&self, stream: u32) -> bool {
        hostcalls::enter(stream)
    }

    fn request_head(&self) -> Option<RequestHead> {
        hostcalls::request_head()
    }

    fn remove_request_header(&self, name: &str) -> bool {
        hostcalls::remove_request_header(name)
    }

    fn add_request_header(&self, name: &str, value: &str) -> bool {
        hostcalls::add_request_header(name, value)
    }

    fn request_body(&self, max: usize) -> Vec<u8> {
        hostcalls::request_body(max)
    }

    fn request_trailers(&self) -> Option<RequestTrailers> {
        hostcalls::request_trailers()
    }

    fn remove_request_trailer(&self, name: &str) -> bool {
        hostcalls::remove_request_trailer(name)
    }

    fn route_settings(&self) -> Result<RouteSettings, RouteInvalid> {
        match hostcalls::route_metadata(METADATA_NAMESPACE) {
            Ok(None) => Ok(RouteSettings::default()),
            Ok(Some(map)) => RouteSettings::from_members(SerializedMap::parse(map).ok_or(RouteInvalid)?.iter()),
            Err(_) => Err(RouteInvalid),
        }
    }

    fn resume_request(&self) {
        hostcalls::resume_request();
    }

    fn send_local_reply(&self, reply: &LocalReply) {
        hostcalls::send_local_reply(reply);
    }

    fn response_headers(&self) -> Option<SerializedMap> {
        hostcalls::response_headers()
    }

    fn response_header(&self, name: &str) -> Vec<u8> {
        hostcalls::response_header(name)
    }

    fn add_response_header(&self, name: &str, value: &str) {
        hostcalls::add_response_header(name, value);
    }

    fn set_response_header(&self, name: &str, value: &str) {
        hostcalls::set_response_header(name, value);
    }

    fn remove_response_header(&self, name: &str) {
        hostcalls::remove_response_header(name);
    }

    fn response_chunk(&self, size: usize) -> Vec<u8> {
        hostcalls::response_chunk(size)
    }

    fn replace_response_chunk(&self, size: usize, passed: &[u8]) -> bool {
        hostcalls::replace_response_chunk(size, passed)
    }

    fn set_filter_state(&self, name: &str, value: &str) {
        hostcalls::set_filter_state(name.strip_prefix(FILTER_STATE).unwrap_or(name), value);
    }

    /// The root context asks: Envoy drops the call of a stream when the stream ends.
    fn ask(&self, question: &Question, stream: u32) -> Option<u32> {
        let Question { upstream, timeout, message, .. } = question;
        hostcalls::enter(self.root);
        let call = hostcalls::call_grpc(upstream, service::SERVICE, service::METHOD, message, *timeout);
        hostcalls::enter(stream);
        call
    }

    fn call(&self, call: Call<'_>) -> Result<u32, String> {
        hostcalls::call_http(call).map_err(|status| format!("{status:?}"))
    }

    fn count(&self, metric: Metric) {
        if let Some(number) = self.numbers.borrow_mut().of(metric) {
            hostcalls::increment(number);
        }
    }

    fn record(&self, metric: Metric, value: u64) {
        if let Some(number) = self.numbers.borrow_mut().of(metric) {
            hostcalls::record(number, value);
        }
    }
}
