//! The root context of one thread: its configuration, its timer and the answers to its calls.

use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::ContextType;

use crate::envoy::Envoy;
use crate::hostcalls;
use crate::http::Stream;
use crate::log_level::FollowedLevel;
use apexmcp_shell::{self as shell, Fetcher, Plugin};

/// Interval at which held requests are checked and due fetches begin. A request that waits for a fetch of another thread
/// waits up to this much longer. A tick with nothing to do costs a few microseconds.
const TICK: Duration = Duration::from_millis(20);

pub(crate) struct Root {
    id: u32,
    plugin: Rc<Plugin<Envoy>>,
    fetcher: Fetcher<Envoy>,
    log_level: FollowedLevel,
}

impl Root {
    pub(crate) fn new(id: u32) -> Self {
        let plugin = Rc::new(Plugin::new(Envoy::new(id)));
        let fetcher = Fetcher::new(Rc::clone(&plugin));
        Self { id, plugin, fetcher, log_level: FollowedLevel::default() }
    }

    /// Decides the held requests that are ready.
    fn wake(&self) {
        self.plugin.wake(hostcalls::now());
        // Streams were the current context meanwhile.
        hostcalls::enter(self.id);
    }
}

/// The answer to the HTTP call that the current callback is about.
struct Answer {
    num_headers: usize,
    size: usize,
}

impl shell::Answer for Answer {
    fn status(&self) -> Option<u16> {
        hostcalls::response_status(self.num_headers)
    }

    fn size(&self) -> usize {
        self.size
    }

    fn body(&self) -> Vec<u8> {
        hostcalls::response_body(self.size)
    }

    fn header(&self, name: &str) -> Option<String> {
        hostcalls::call_header(name)
    }
}

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, num_headers: usize, body_size: usize, _num_trailers: usize) {
        if self.fetcher.answered(token, &Answer { num_headers, size: body_size }) {
            self.wake();
        }
    }

    // Envoy has another configuration, or stops.
    fn on_done(&mut self) -> bool {
        self.fetcher.release();
        true
    }

    // The answer to a question that was asked in a callback of the root context.
    fn on_grpc_call_response(&mut self, token: u32, status: u32, size: usize) {
        self.plugin.answered(token, status, size, hostcalls::grpc_response);
        hostcalls::enter(self.id);
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        self.log_level.start(hostcalls::now());
        let is_accepted = self.plugin.configure(&hostcalls::plugin_configuration());
        if is_accepted {
            log::info!("{}", self.plugin.envoy.describe());
        }
        is_accepted && hostcalls::tick_every(TICK)
    }

    fn on_tick(&mut self) {
        let now = hostcalls::now();
        self.log_level.tick(now);
        self.fetcher.tick(now, &[]);
        self.wake();
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        self.plugin.answer_given_up();
        Some(Box::new(Stream(shell::Stream::new(id, Rc::clone(&self.plugin)))))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}
