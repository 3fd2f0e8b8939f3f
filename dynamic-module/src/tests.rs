//! Streams in every state, with callbacks as Envoy makes them, in a random order. Under AddressSanitizer or Miri
//! (`make sanitize`), each use of a stream that has ended, or of a text that has changed, fails.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ops::Deref;
use std::ptr;
use std::rc::Rc;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use fastrand::Rng;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::abi::{Buffer, Header};
use crate::hooks::{
    envoy_dynamic_module_on_http_filter_config_destroy, envoy_dynamic_module_on_http_filter_config_http_callout_done,
    envoy_dynamic_module_on_http_filter_config_new, envoy_dynamic_module_on_http_filter_config_scheduled,
    envoy_dynamic_module_on_http_filter_destroy, envoy_dynamic_module_on_http_filter_http_stream_complete,
    envoy_dynamic_module_on_http_filter_http_stream_data, envoy_dynamic_module_on_http_filter_http_stream_headers,
    envoy_dynamic_module_on_http_filter_http_stream_reset, envoy_dynamic_module_on_http_filter_new,
    envoy_dynamic_module_on_http_filter_request_body, envoy_dynamic_module_on_http_filter_request_headers,
    envoy_dynamic_module_on_http_filter_request_trailers, envoy_dynamic_module_on_http_filter_response_body,
    envoy_dynamic_module_on_http_filter_response_headers, envoy_dynamic_module_on_http_filter_scheduled,
    envoy_dynamic_module_on_http_filter_stream_complete,
};
use crate::mock::{Filter, FilterConfig, Text};

const CONTINUE: u32 = 0;
const REQUEST_HEADERS: usize = 0;
const TRAILERS: usize = 1;
const RESPONSE_HEADERS: usize = 2;
const RECEIVED: usize = 0;
const BUFFERED: usize = 1;
const RESPONSE: usize = 2;

const WHOLE: &str = "apx_live_sk_0123456789abcdefghijABCDEFGHIJ01";
const SCOPED: &str = "apx_live_sk_0123456789abcdefghijABCDEFGHIJ02";
const LIMITED: &str = "apx_live_sk_0123456789abcdefghijABCDEFGHIJ03";

/// A token of the provider. Its signature is wrong.
fn token() -> String {
    let part = |value: serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({"iss": "https://idp.example", "aud": "apexmcp", "sub": "agent", "exp": 4_000_000_000_u64});
    format!("Bearer {}.{}.{}", part(json!({"alg": "RS256", "kid": "a"})), part(claims), part(json!([])))
}

/// Each number has a key set of its own, which is not there yet: the module keeps key sets for all configurations.
fn configuration(number: usize) -> String {
    let sha256 = |key: &str| hex::encode(Sha256::digest(key));
    let keys = json!([
        {"id": "whole", "sha256": sha256(WHOLE)},
        {"id": "scoped", "sha256": sha256(SCOPED), "connectors": ["notes"]},
    ]);
    let provider =
        json!({"issuer": "https://idp.example", "jwks_uri": format!("https://idp.example/keys/{number}"), "audience": "apexmcp"});
    let limits = json!({"rate": {"requests": 5, "per": "second"}});
    json!({
        "gateway": {"origin": "https://gateway.example", "route_metadata": true},
        "jwks": {"http_cluster": "jwks_http", "https_cluster": "jwks_https", "timeout": "5ms"},
        "limits": {
            "store": "rate_limit_service",
            "rate_limit_service": {"cluster": "ratelimit", "timeout": "5ms", "on_error": "allow"},
        },
        "policy": {"inline": {"version": "1", "orgs": {
            "acme": {"api_keys": keys, "identity_providers": [provider]},
            "limited": {"api_keys": [{"id": "limited", "sha256": sha256(LIMITED)}], "limits": limits},
        }}},
    })
    .to_string()
}

/// A value of Envoy on the heap. A `Box` would claim that the module has no pointer to it.
struct Owned<T>(*mut T);

impl<T: Default> Owned<T> {
    fn new() -> Self {
        Self(Box::into_raw(Box::default()))
    }

    fn pointer(&self) -> *mut c_void {
        self.0.cast()
    }
}

impl<T> Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the value lives as long as `self`, and is only read or changed within its cells.
        unsafe { &*self.0 }
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: `new` made it from a box, and nothing else frees it.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// A configuration that the module has accepted.
struct Configured {
    envoy: Owned<FilterConfig>,
    module: *const c_void,
}

impl Configured {
    fn new(text: &str) -> Self {
        let envoy = Owned::<FilterConfig>::new();
        let (name, buffer) = (Buffer::of(b"apexmcp_auth"), Buffer::of(text.as_bytes()));
        // SAFETY: as Envoy calls it.
        let module = unsafe { envoy_dynamic_module_on_http_filter_config_new(envoy.pointer(), name, buffer) };
        Self { envoy, module }
    }

    fn tick(&self) {
        // SAFETY: as Envoy calls it.
        unsafe { envoy_dynamic_module_on_http_filter_config_scheduled(self.envoy.pointer(), self.module, 0) };
    }

    /// Answers a call of the configuration.
    fn answer(&self, rng: &mut Rng) {
        if self.envoy.calls.borrow().is_empty() {
            return;
        }
        // Miri cannot run AWS-LC, so it gets a key that is too short to be used.
        let modulus = if cfg!(miri) { "AQAB".to_owned() } else { "_".repeat(340) + "_w" };
        let key_set = json!({"keys": [{"kty": "RSA", "kid": "a", "n": modulus, "e": "AQAB"}]});
        let body = mutant(rng, key_set.to_string().as_bytes());
        let headers = [(b":status".to_vec(), choose(rng, &[b"200", b"304", b"503", b"2\xff"]).to_vec())];
        let (chunks, headers) = (chunks(rng, &body), abi_headers(&headers));
        if rng.u8(..8) == 0 { self.fail() } else { self.end_call(0, &headers, &chunks) }
    }

    /// The connection of a call breaks.
    fn fail(&self) {
        self.end_call(1, &[], &[]);
    }

    fn end_call(&self, result: u32, headers: &[Header], chunks: &[Buffer]) {
        let call = self.envoy.calls.borrow_mut().pop().expect("an open call");
        // SAFETY: as Envoy calls it. It has null pointers for what is not there.
        unsafe {
            envoy_dynamic_module_on_http_filter_config_http_callout_done(
                self.envoy.pointer(),
                self.module,
                call,
                result,
                if headers.is_empty() { ptr::null() } else { headers.as_ptr() },
                headers.len(),
                if chunks.is_empty() { ptr::null() } else { chunks.as_ptr() },
                chunks.len(),
            );
        }
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        if !self.module.is_null() {
            // SAFETY: as Envoy calls it, once.
            unsafe { envoy_dynamic_module_on_http_filter_config_destroy(self.module) };
        }
    }
}

/// A stream of Envoy, and how far it is. Envoy destroys a configuration after its last stream.
struct Stream {
    envoy: Owned<Filter>,
    module: *const c_void,
    is_request_complete: bool,
    has_begun: bool,
    is_answered: bool,
    _config: Rc<Configured>,
}

impl Stream {
    fn new(config: &Rc<Configured>, headers: &[(Text, Text)]) -> Self {
        let envoy = Owned::<Filter>::new();
        fill(&envoy, REQUEST_HEADERS, headers);
        // SAFETY: as Envoy calls it.
        let module = unsafe { envoy_dynamic_module_on_http_filter_new(config.module, envoy.pointer()) };
        assert!(!module.is_null());
        Self { envoy, module, is_request_complete: false, has_begun: false, is_answered: false, _config: Rc::clone(config) }
    }

    fn of(&self) -> *mut c_void {
        self.envoy.pointer()
    }

    /// The next event of this stream.
    fn step(&mut self, rng: &mut Rng) {
        let is_replied = !self.envoy.replies.borrow().is_empty();
        match rng.u8(..8) {
            0 => self.wake(),
            1 => self.question(rng),
            2 if self.has_begun && !is_replied => self.respond(rng),
            _ if !is_replied && !self.is_request_complete => self.receive(rng),
            _ => {}
        }
        self.check();
    }

    /// The next part of the request.
    fn receive(&mut self, rng: &mut Rng) {
        self.is_request_complete = rng.bool();
        let end = self.is_request_complete;
        if !self.has_begun {
            return self.begin(end);
        }
        if end && rng.bool() {
            return self.end_with_trailer(&mutant(rng, b"x-apexmcp-org"));
        }
        let body = mutant(rng, br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"notes__write"}}"#);
        let mut received: Vec<Box<[u8]>> = split(rng, &body).into_iter().map(Into::into).collect();
        // Envoy may also show all that it holds as what was received.
        self.envoy.received_is_buffered.set(rng.bool());
        if self.envoy.received_is_buffered.get() {
            let mut buffered = self.envoy.bodies[BUFFERED].borrow_mut();
            received.splice(..0, buffered.drain(..));
            buffered.clone_from(&received);
        }
        *self.envoy.bodies[RECEIVED].borrow_mut() = received;
        // SAFETY: as Envoy calls it.
        let status = unsafe { envoy_dynamic_module_on_http_filter_request_body(self.of(), self.module, end) };
        let received = std::mem::take(&mut *self.envoy.bodies[RECEIVED].borrow_mut());
        let mut buffered = self.envoy.bodies[BUFFERED].borrow_mut();
        if status == CONTINUE {
            buffered.clear();
        } else if !self.envoy.received_is_buffered.get() {
            buffered.extend(received);
        }
    }

    fn begin(&mut self, end: bool) {
        self.has_begun = true;
        // SAFETY: as Envoy calls it.
        let status = unsafe { envoy_dynamic_module_on_http_filter_request_headers(self.of(), self.module, end) };
        if status == CONTINUE {
            self.envoy.continued.set(1);
        }
    }

    fn end_with_trailer(&self, name: &[u8]) {
        fill(&self.envoy, TRAILERS, &[(name.to_vec(), b"forged".to_vec())]);
        // SAFETY: as Envoy calls it.
        unsafe { envoy_dynamic_module_on_http_filter_request_trailers(self.of(), self.module) };
    }

    /// The response, or a part of it.
    fn respond(&mut self, rng: &mut Rng) {
        let end = rng.bool();
        if !self.is_answered {
            self.is_answered = true;
            let media_type = choose(rng, &[b"application/json", b"text/event-stream"]).to_vec();
            let headers = [
                (b":status".to_vec(), choose(rng, &[b"200", b"500", b"2\xff0"]).to_vec()),
                (b"content-type".to_vec(), media_type),
                (b"cache-control".to_vec(), mutant(rng, b"max-age=60")),
            ];
            fill(&self.envoy, RESPONSE_HEADERS, &headers);
            // SAFETY: as Envoy calls it.
            unsafe { envoy_dynamic_module_on_http_filter_response_headers(self.of(), self.module, end) };
        } else {
            let body = mutant(rng, br#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"notes__a"},{"name":"clock__b"}]}}"#);
            *self.envoy.bodies[RESPONSE].borrow_mut() = split(rng, &body).into_iter().map(Into::into).collect();
            // SAFETY: as Envoy calls it.
            unsafe { envoy_dynamic_module_on_http_filter_response_body(self.of(), self.module, end) };
        }
    }

    fn wake(&self) {
        // SAFETY: as Envoy calls it.
        unsafe { envoy_dynamic_module_on_http_filter_scheduled(self.of(), self.module, 0) };
    }

    /// An event of the question to the rate limit service.
    fn question(&self, rng: &mut Rng) {
        let open = self.envoy.requests.borrow().last().copied();
        // Envoy may also tell of a request that the module has ended.
        let Some(request) = open.or_else(|| (rng.u8(..16) == 0).then_some(7)) else { return };
        let (of, module) = (self.of(), self.module);
        match rng.u8(..4) {
            0 => {
                let headers = [(b":status".to_vec(), mutant(rng, b"200")), (b"grpc-status".to_vec(), mutant(rng, b"0"))];
                let headers = abi_headers(&headers);
                // SAFETY: as Envoy calls it.
                unsafe {
                    envoy_dynamic_module_on_http_filter_http_stream_headers(
                        of,
                        module,
                        request,
                        headers.as_ptr(),
                        headers.len(),
                        false,
                    );
                }
            }
            1 => {
                let body = mutant(rng, b"\0\0\0\0\x02\x08\x01");
                let chunks = chunks(rng, &body);
                // SAFETY: as Envoy calls it.
                unsafe {
                    envoy_dynamic_module_on_http_filter_http_stream_data(
                        of,
                        module,
                        request,
                        chunks.as_ptr(),
                        chunks.len(),
                        true,
                    );
                }
            }
            end => {
                self.envoy.requests.borrow_mut().retain(|open| *open != request);
                // SAFETY: as Envoy calls it.
                unsafe {
                    if end == 2 {
                        envoy_dynamic_module_on_http_filter_http_stream_complete(of, module, request);
                    } else {
                        envoy_dynamic_module_on_http_filter_http_stream_reset(of, module, request, 0);
                    }
                }
            }
        }
    }

    /// What must hold after each event.
    fn check(&self) {
        let replies = self.envoy.replies.borrow().len();
        assert!(replies <= 1, "the request was answered {replies} times");
        if self.envoy.continued.get() > 0 {
            let headers = self.envoy.maps[REQUEST_HEADERS].borrow();
            assert!(headers.iter().all(|(_, value)| **value != *b"forged"), "a forged header goes to the connector");
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: as Envoy calls them, once.
        unsafe {
            envoy_dynamic_module_on_http_filter_stream_complete(self.of(), self.module);
            envoy_dynamic_module_on_http_filter_destroy(self.module);
        }
    }
}

fn fill(envoy: &Filter, map: usize, headers: &[(Text, Text)]) {
    let boxed = |(name, value): &(Text, Text)| (name.as_slice().into(), value.as_slice().into());
    *envoy.maps[map].borrow_mut() = headers.iter().map(boxed).collect();
}

fn abi_headers(headers: &[(Text, Text)]) -> Vec<Header> {
    headers.iter().map(|(name, value)| Header { name: Buffer::of(name), value: Buffer::of(value) }).collect()
}

fn choose<'a>(rng: &mut Rng, from: &[&'a [u8]]) -> &'a [u8] {
    from[rng.usize(..from.len())]
}

/// The text, or one with other bytes in it, or a part of it.
fn mutant(rng: &mut Rng, text: &[u8]) -> Text {
    let mut text = text.to_vec();
    if rng.u8(..4) == 0 {
        let at = rng.usize(..text.len());
        match rng.u8(..3) {
            0 => text[at] = rng.u8(..),
            1 => text.truncate(at),
            _ => text.extend_from_within(at..),
        }
    }
    text
}

fn split<'t>(rng: &mut Rng, text: &'t [u8]) -> Vec<&'t [u8]> {
    let (first, second) = text.split_at(rng.usize(..=text.len()));
    if rng.bool() { vec![first, second] } else { vec![text] }
}

fn chunks(rng: &mut Rng, text: &[u8]) -> Vec<Buffer> {
    split(rng, text).into_iter().map(Buffer::of).collect()
}

fn head(rng: &mut Rng) -> Vec<(Text, Text)> {
    let org = choose(rng, &[b"acme", b"acme", b"limited", b"nobody"]);
    let path = [b"/mcp/", org, choose(rng, &[b"", b"", b"/notes", b"/clock"])].concat();
    let token = token();
    let credential: (&[u8], &str) = match rng.u8(..5) {
        0 => (b"x-api-key", WHOLE),
        1 => (b"x-api-key", SCOPED),
        2 => (b"x-api-key", LIMITED),
        3 => (b"authorization", &token),
        _ => (b"authorization", "Basic x"),
    };
    let mut headers: Vec<(Text, Text)> = [
        (&b":method"[..], choose(rng, &[b"POST", b"POST", b"GET", b"OPTIONS"])),
        (b":path", &*path),
        (b":authority", b"gateway.example"),
        (b"content-type", choose(rng, &[b"application/json", b"application/x-www-form-urlencoded"])),
        (b"accept", b"application/json, text/event-stream"),
        (b"mcp-protocol-version", b"2026-07-28"),
        (b"mcp-method", choose(rng, &[b"tools/call", b"tools/list"])),
        (credential.0, credential.1.as_bytes()),
    ]
    .map(|(name, value)| (name.to_vec(), value.to_vec()))
    .into();
    if rng.bool() {
        headers.push((
            choose(rng, &[b"x-apexmcp-org", b"x_apexmcp_scope", b"X-Apexmcp-Subject"]).to_ascii_lowercase(),
            b"forged".to_vec(),
        ));
    }
    if rng.u8(..8) == 0 {
        let of = rng.usize(..headers.len());
        headers[of].1 = mutant(rng, &headers[of].1.clone());
    }
    // More headers than fit in the array on the stack.
    let many = if rng.u8(..16) == 0 { 40 } else { 0 };
    headers.extend((0..many).map(|number| (format!("x-{number}").into_bytes(), b"v".to_vec())));
    headers
}

#[test]
fn streams_end_in_every_state() {
    let (rounds, steps) = if cfg!(miri) { (3, 100) } else { (1_000, 100) };
    let seed = std::env::var("FUZZ_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_default();
    let mut rng = Rng::with_seed(seed);
    let (mut admitted, mut answered, mut waited) = (0, 0, 0);
    for round in 0..rounds {
        let mut config = Rc::new(Configured::new(&configuration(round)));
        let mut streams: Vec<Stream> = Vec::new();
        for _ in 0..steps {
            match rng.u8(..16) {
                0..2 if streams.len() < 40 => {
                    let stream = Stream::new(&config, &head(&mut rng));
                    if rng.u8(..4) == 0 {
                        let member = (mutant(&mut rng, b"connector"), mutant(&mut rng, b"notes"));
                        stream.envoy.route_metadata.borrow_mut().push(member);
                    }
                    streams.push(stream);
                }
                2 => config.tick(),
                3 => config.answer(&mut rng),
                4 if !streams.is_empty() => {
                    let ended = streams.swap_remove(rng.usize(..streams.len()));
                    let (is_admitted, is_answered) = (ended.envoy.continued.get() > 0, !ended.envoy.replies.borrow().is_empty());
                    admitted += usize::from(is_admitted);
                    answered += usize::from(is_answered);
                    waited += usize::from(ended.has_begun && !is_admitted && !is_answered);
                }
                // Envoy replaces a configuration while streams of it are open.
                5 if rng.u8(..64) == 0 => config = Rc::new(Configured::new(&configuration(round))),
                _ if !streams.is_empty() => {
                    let of = rng.usize(..streams.len());
                    streams[of].step(&mut rng);
                }
                _ => {}
            }
        }
    }
    // Miri runs too few steps to reach each end.
    assert!(
        cfg!(miri) || admitted > 0 && answered > 0 && waited > 0,
        "{admitted} admitted, {answered} answered, {waited} waited"
    );
}

#[test]
fn a_held_request_whose_trailers_cannot_be_edited_is_answered_once() {
    let (config, token) = (Rc::new(Configured::new(&configuration(1_000_000))), token());
    let headers = [
        (&b":method"[..], &b"POST"[..]),
        (b":path", b"/mcp/acme"),
        (b"content-type", b"application/json"),
        (b"authorization", token.as_bytes()),
    ];
    let mut stream = Stream::new(&config, &headers.map(|(name, value)| (name.to_vec(), value.to_vec())));
    stream.begin(false);
    assert_eq!(*stream.envoy.replies.borrow(), [0; 0], "the request waits for the keys of the provider");
    stream.end_with_trailer(b"x-\xff");
    assert_eq!(*stream.envoy.replies.borrow(), [503]);
    // The other tests share the process's bounds of fetches.
    while config.envoy.calls.borrow().is_empty() {
        stream.wake();
        config.tick();
    }
    config.fail();
    stream.wake();
    stream.check();
}

#[test]
fn a_configuration_that_is_refused_is_a_null_pointer() {
    assert!(Configured::new("{").module.is_null());
    assert!(Configured::new("").module.is_null());
}
