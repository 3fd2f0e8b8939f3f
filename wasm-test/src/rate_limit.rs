//! Envoy's rate limit service and the Redis that stores its counts. Both are real.

use crate::process::{Folder, Process, argument, free_port, run};
use crate::repository;

/// The rate limit domain that the service accepts.
pub const DOMAIN: &str = "apexmcp";

/// The service. The service and Redis can be stopped and started again; their ports stay the same.
#[derive(Debug)]
pub struct RateLimitService {
    folder: Folder,
    redis_port: u16,
    ports: [u16; 3],
    redis: Option<Process>,
    service: Option<Process>,
}

impl RateLimitService {
    /// Starts Redis and the service.
    pub async fn start() -> Self {
        let folder = Folder::new().expect("a folder");
        let config = folder.file("runtime/ratelimit/config");
        std::fs::create_dir_all(&config).expect("a folder");
        std::fs::write(config.join("apexmcp.yaml"), format!("domain: {DOMAIN}\n")).expect("its configuration");
        let ports = [free_port(), free_port(), free_port()];
        let mut this = Self { folder, redis_port: free_port(), ports, redis: None, service: None };
        this.start_redis().await;
        this.start_service().await;
        this
    }

    /// The gRPC port of the service.
    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// Starts Redis without data.
    pub async fn start_redis(&mut self) {
        let port = self.redis_port.to_string();
        let arguments = ["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
        let mut redis = Process::start("redis-server", &arguments, &self.folder).expect("Redis starts");
        redis.until_listening("Redis", self.redis_port, &self.folder).await;
        self.redis = Some(redis);
    }

    pub fn stop_redis(&mut self) {
        self.redis = None;
    }

    pub async fn start_service(&mut self) {
        let [grpc, http, debug] = self.ports.map(|port| port.to_string());
        let redis = format!("127.0.0.1:{}", self.redis_port);
        let runtime = self.folder.file("runtime");
        let runtime = runtime.canonicalize().unwrap_or_else(|_| repository().join(&runtime));
        let environment = [
            ("HOST", "127.0.0.1"),
            ("GRPC_HOST", "127.0.0.1"),
            ("DEBUG_HOST", "127.0.0.1"),
            ("GRPC_PORT", &grpc),
            ("PORT", &http),
            ("DEBUG_PORT", &debug),
            ("REDIS_SOCKET_TYPE", "tcp"),
            ("REDIS_URL", &redis),
            ("REDIS_TIMEOUT", "1s"),
            ("USE_STATSD", "false"),
            ("RUNTIME_ROOT", argument(&runtime)),
            ("RUNTIME_SUBDIRECTORY", "ratelimit"),
            ("RUNTIME_WATCH_ROOT", "false"),
            // A request that exceeds one limit does not count at the other limits.
            ("STOP_CACHE_KEY_INCREMENT_WHEN_OVERLIMIT", "true"),
        ];
        let mut service = Process::start_with("ratelimit", &[], &environment, &self.folder).expect("the service starts");
        service.until_listening("the rate limit service", self.port(), &self.folder).await;
        self.service = Some(service);
    }

    /// Sends the service a signal: `STOP` pauses it, `CONT` resumes it.
    pub async fn signal_service(&self, signal: &str) {
        let id = self.service.as_ref().expect("it runs").id();
        run("sh", &["-c", &format!("kill -{signal} {id}")]).await;
    }

    pub fn stop_service(&mut self) {
        self.service = None;
    }
}
