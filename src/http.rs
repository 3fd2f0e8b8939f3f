//! The callbacks of one stream.

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

use crate::envoy::Envoy;
use crate::hostcalls;
use apexmcp_shell as shell;

pub(crate) struct Stream(pub(crate) shell::Stream<Envoy>);

impl Context for Stream {
    // The SDK gives the answer to the stream in whose callback the root context asked.
    fn on_grpc_call_response(&mut self, token: u32, status: u32, size: usize) {
        self.0.answered(token, status, size, hostcalls::grpc_response);
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _num_headers: usize, end_of_stream: bool) -> Action {
        action(self.0.request_headers(end_of_stream))
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        action(self.0.request_body(|| size, end_of_stream))
    }

    fn on_http_request_trailers(&mut self, num_trailers: usize) -> Action {
        action(self.0.request_trailers(num_trailers))
    }

    fn on_http_response_headers(&mut self, _num_headers: usize, _end_of_stream: bool) -> Action {
        self.0.response_headers();
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        action(self.0.response_body(|| size, end_of_stream))
    }
}

fn action(action: shell::Action) -> Action {
    match action {
        shell::Action::Continue => Action::Continue,
        shell::Action::Pause => Action::Pause,
    }
}
