//! The identity providers of one organization attack: their key sets are huge, never end, or never arrive. Other
//! organizations are served as before, and Envoy's memory stays limited.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use wasm_test::eventually;
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::Request;
use wasm_test::module::Module;
use wasm_test::policy::merged;
use wasm_test::token::{Key, now};
use wasm_test::upstream;

/// The maximum number of providers of an organization.
const PROVIDERS: usize = 32;
/// The bytes of its endless document that a provider sends. At 32 MiB, Envoy itself ends a fetch.
const SENT: usize = 31_000_000;
/// A slow provider sends one chunk of this size in each [`PACE`], so that it needs most of the time that a fetch may take.
const CHUNK: usize = 500_000;
const PACE: Duration = Duration::from_millis(20);
/// Envoy with one worker has about 130 MB before the attack.
const MAX_MEMORY_KB: u64 = 600_000;

/// The answers of the attacker's providers.
#[derive(Clone, Debug)]
enum Attack {
    /// A long part immediately, and then no more bytes.
    Endless,
    /// Small parts with pauses between them.
    Slow,
    /// A long key set for the first request, and no answer to further requests.
    Hang(Arc<str>),
    /// Another long key set for each request, immediately.
    Rotate,
}

/// One host with the key sets of both organizations. The neighbor's key set is at `/neighbor`.
struct Host {
    port: u16,
    neighbor: Arc<std::sync::Mutex<Value>>,
    in_flight: Arc<AtomicUsize>,
    most_in_flight: Arc<AtomicUsize>,
    /// Fetches for which Envoy has buffered all sent bytes.
    complete: Arc<AtomicUsize>,
    _accepting: JoinSet<()>,
}

struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Host {
    async fn start(attack: Attack) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let neighbor = Arc::new(std::sync::Mutex::new(json!({})));
        let [in_flight, most_in_flight, complete] = [(); 3].map(|()| Arc::new(AtomicUsize::new(0)));
        let mut accepting = JoinSet::new();
        let (published, counts) = (neighbor.clone(), [in_flight.clone(), most_in_flight.clone(), complete.clone()]);
        let seen = Arc::new(std::sync::Mutex::new(Vec::<String>::new()));
        accepting.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (attack, published, seen) = (attack.clone(), published.clone(), seen.clone());
                let [in_flight, most, complete] = counts.clone();
                tokio::spawn(async move {
                    let mut connection = BufReader::new(connection);
                    // Envoy may send several requests on a connection, one after the other.
                    while let Some(path) = next_path(&mut connection).await {
                        if path == "/neighbor" {
                            let body = published.lock().expect("the neighbor's keys").to_string();
                            connection.write_all(&answer(body.len(), body.as_bytes())).await.ok()?;
                            continue;
                        }
                        let now_in_flight = in_flight.fetch_add(1, Ordering::SeqCst) + 1;
                        let counted = InFlight(in_flight.clone());
                        let is_first = {
                            let mut seen = seen.lock().expect("the paths seen");
                            let is_first = !seen.contains(&path);
                            seen.push(path);
                            is_first
                        };
                        match &attack {
                            Attack::Hang(document) if is_first => {
                                drop(counted);
                                connection.write_all(&answer(document.len(), document.as_bytes())).await.ok()?;
                                continue;
                            }
                            Attack::Hang(_) => {}
                            Attack::Rotate => {
                                let number = complete.fetch_add(1, Ordering::SeqCst);
                                let document = long_document(&format!("rotated-{number}"));
                                drop(counted);
                                connection.write_all(&answer(document.len(), document.as_bytes())).await.ok()?;
                                continue;
                            }
                            Attack::Endless | Attack::Slow => {
                                connection.write_all(&answer(SENT * 2, b"")).await.ok()?;
                                let part = if matches!(attack, Attack::Slow) { CHUNK } else { SENT };
                                let mut pace = tokio::time::interval(PACE);
                                for _ in 0..SENT / part {
                                    pace.tick().await;
                                    connection.write_all(&vec![b' '; part]).await.ok()?;
                                }
                                complete.fetch_add(1, Ordering::SeqCst);
                            }
                        }
                        most.fetch_max(now_in_flight, Ordering::SeqCst);
                        // Wait until Envoy gives up and closes the connection.
                        let mut rest = String::new();
                        connection.read_line(&mut rest).await.ok()?;
                        return Some(());
                    }
                    Some(())
                });
            }
        });
        Self { port, neighbor, in_flight, most_in_flight, complete, _accepting: accepting }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// Publishes this key for the neighbor from now on.
    fn publish(&self, key: &Key) {
        *self.neighbor.lock().expect("the neighbor's keys") = json!({"keys": [key.jwk()]});
    }

    fn provider(&self, path: &str) -> Value {
        json!({"issuer": self.url(path), "jwks_uri": self.url(path), "audience": "apexmcp"})
    }

    fn token(&self, path: &str, key: &Key) -> String {
        key.token(&json!({"iss": self.url(path), "sub": "agent", "aud": "apexmcp", "iat": now(), "exp": now() + 3600}))
    }
}

fn answer(length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// A key set of 245 KB. A usable key makes it long, because unusable keys are not shared between threads.
fn long_document(kid: &str) -> String {
    let key = Key::first(kid).jwk();
    let long = merged(key.clone(), &json!({"kid": "k".repeat(245_000)}));
    json!({"keys": [key, long]}).to_string()
}

/// The path of the next request, which has no body.
async fn next_path(connection: &mut BufReader<tokio::net::TcpStream>) -> Option<String> {
    let mut path = None;
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if line.trim().is_empty() {
            return path;
        }
        path = path.or_else(|| line.split(' ').nth(1).map(str::to_owned));
    }
}

/// A gateway on which the attacker has these providers, and the neighbor has its own.
fn setup(host: &Host, attackers: &[Value], jwks: &Value) -> Setup {
    let orgs = json!({
        "attacker": {"identity_providers": attackers},
        "neighbor": {"identity_providers": [host.provider("neighbor")]},
    });
    let jwks = merged(json!({"http_cluster": "jwks_http"}), jwks);
    Setup::new(merged(plugin(&orgs), &json!({ "jwks": jwks })))
}

/// Sends tokens for all of the attacker's providers, again and again, until the value is dropped. None is admitted.
fn attack(gateway: &Gateway, host: &Host) -> JoinSet<()> {
    let forger = Key::second("forged");
    let mut attackers = JoinSet::new();
    for number in 0..PROVIDERS {
        let request = Request::tools_list("/mcp/attacker").bearer(&host.token(&format!("attacker-{number}"), &forger));
        let client = gateway.client().clone();
        attackers.spawn(async move {
            loop {
                let reply = client.send(&request).await;
                assert!(matches!(reply.status, 401 | 503), "{reply:?}");
            }
        });
    }
    attackers
}

/// Attacks until some fetches have filled their buffers. Meanwhile the neighbor rotates its key repeatedly.
async fn memory_stays_limited(attack_by: Attack, names_neighbor: bool) {
    let upstream = upstream::start().await;
    let host = Host::start(attack_by).await;
    host.publish(&Key::first("0"));
    let own = (0..PROVIDERS - usize::from(names_neighbor)).map(|number| host.provider(&format!("attacker-{number}")));
    let shared = names_neighbor.then(|| host.provider("neighbor"));
    let attackers: Vec<Value> = own.chain(shared).collect();
    let gateway = setup(&host, &attackers, &json!({"timeout": "2s", "refetch_cooldown": "1ms"})).start(&upstream).await;
    let attack = attack(&gateway, &host);
    let (mut rotations, mut most_memory) = (0, 0);
    eventually("the attack is at its height", async || {
        rotations += 1;
        let key = Key::first(&rotations.to_string());
        host.publish(&key);
        let reply = gateway.send(&Request::tools_list("/mcp/neighbor").bearer(&host.token("neighbor", &key))).await;
        assert_eq!(reply.status, 200, "rotation {rotations}: {reply:?}");
        most_memory = most_memory.max(gateway.memory_kb());
        (host.complete.load(Ordering::SeqCst) >= 8).then_some(())
    })
    .await;
    drop(attack);
    let most_in_flight = host.most_in_flight.load(Ordering::SeqCst);
    println!("{rotations} rotations of the neighbor, {most_in_flight} fetches in flight, at most {most_memory} kB");
    assert!(most_memory < MAX_MEMORY_KB, "Envoy used {most_memory} kB, the limit is {MAX_MEMORY_KB} kB");
    // Envoy may close a connection after the module begins the next fetch.
    assert!(most_in_flight <= 4, "{most_in_flight} fetches in flight");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn providers_that_send_much_and_hang_do_not_fill_memory() {
    memory_stays_limited(Attack::Endless, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn providers_that_send_much_slowly_do_not_fill_memory() {
    memory_stays_limited(Attack::Slow, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn providers_that_name_a_neighbors_key_set_do_not_fill_memory() {
    memory_stays_limited(Attack::Endless, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lower_buffer_limit_of_envoy_ends_a_fetch_early() {
    let upstream = upstream::start().await;
    let host = Host::start(Attack::Endless).await;
    let setup = setup(&host, &[host.provider("attacker-0")], &json!({"timeout": "60s"}));
    let gateway = setup.runtime(json!({"http.async_response_buffer_limit": 1 << 20})).start(&upstream).await;
    eventually("failed fetches", async || (gateway.fetched("failure").await >= 2).then_some(())).await;
    assert_eq!(host.complete.load(Ordering::SeqCst), 0);
}

/// Repeats a request that must be admitted. Returns its latencies as text.
async fn latencies(gateway: &Gateway, request: &Request, mut are_enough: impl AsyncFnMut(usize) -> bool) -> String {
    let mut latencies = Vec::new();
    while !are_enough(latencies.len()).await {
        let began = Instant::now();
        assert_eq!(gateway.send(request).await.status, 200);
        latencies.push(began.elapsed());
    }
    latencies.sort();
    let at = |permille: usize| latencies.get(latencies.len() * permille / 1000).copied().unwrap_or(Duration::ZERO);
    format!("{} requests, median {:?}, p99 {:?}", latencies.len(), at(500), at(990))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn providers_with_new_keys_in_each_answer_are_fetched_at_most_twenty_times_a_second() {
    const FETCHES: usize = 150;
    let upstream = upstream::start().await;
    let began = Instant::now();
    let host = Host::start(Attack::Rotate).await;
    host.publish(&Key::first("neighbor"));
    let attackers: Vec<Value> = (0..PROVIDERS).map(|number| host.provider(&format!("attacker-{number}"))).collect();
    let gateway = setup(&host, &attackers, &json!({"timeout": "2s"})).start(&upstream).await;
    let _attack = attack(&gateway, &host);
    let good = Request::tools_list("/mcp/neighbor").bearer(&host.token("neighbor", &Key::first("neighbor")));
    let latencies = latencies(&gateway, &good, async |_| host.complete.load(Ordering::SeqCst) >= FETCHES).await;
    let (fetches, took) = (host.complete.load(Ordering::SeqCst), began.elapsed());
    println!("{fetches} fetches in {took:?}; the neighbor's latency: {latencies}");
    let allowed = 2 + (took.as_secs_f64() * 20.0).ceil() as usize;
    assert!(fetches <= allowed, "{fetches} fetches in {took:?}, {allowed} allowed");
}

/// The number of bytes that Envoy copied into the module in each tick of this trace.
fn copied_in_ticks(trace: &str) -> Vec<usize> {
    let (mut ticks, mut current) = (Vec::new(), None);
    for line in trace.lines() {
        if line.contains("[host->vm] proxy_on_tick(") {
            current = Some(0);
        } else if line.contains("[host<-vm] proxy_on_tick") {
            ticks.extend(current.take());
        } else if let (Some(copied), Some((_, size))) = (&mut current, line.split_once("[host->vm] proxy_on_memory_allocate(")) {
            *copied += size.trim_end_matches(')').parse::<usize>().expect("a size");
        }
    }
    ticks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_long_key_sets_does_not_slow_other_organizations() {
    let upstream = upstream::start().await;
    let host = Host::start(Attack::Hang(long_document("known").into())).await;
    host.publish(&Key::first("neighbor"));
    let attackers: Vec<Value> = (0..PROVIDERS).map(|number| host.provider(&format!("attacker-{number}"))).collect();
    let gateway = setup(&host, &attackers, &json!({"timeout": "60s"})).start(&upstream).await;
    eventually("all key sets", async || (gateway.fetched("success").await > PROVIDERS as u64).then_some(())).await;
    let _attack = attack(&gateway, &host);
    gateway.until_active(PROVIDERS as u64).await;
    eventually("the fetches for unknown keys", async || (host.in_flight.load(Ordering::SeqCst) >= 2).then_some(())).await;

    let good = Request::tools_list("/mcp/neighbor").bearer(&host.token("neighbor", &Key::first("neighbor")));
    let latencies = latencies(&gateway, &good, async |count| count == 300).await;
    println!("the neighbor's latency: {latencies}");

    if Module::is_native("it copies nothing from shared data in a tick that Envoy could log") {
        return;
    }
    let start = gateway.log().len();
    gateway.admin().send(&Request::post("/logging?wasm=trace")).await;
    let ticks = eventually("ticks in the trace", async || {
        let ticks = copied_in_ticks(&gateway.log()[start..]);
        (ticks.len() >= 100).then_some(ticks)
    })
    .await;
    gateway.admin().send(&Request::post("/logging?wasm=debug")).await;
    let most = ticks.iter().max().expect("a tick");
    println!("{} ticks, at most {most} bytes copied in one", ticks.len());
    assert!(ticks.iter().any(|copied| *copied > 0), "no tick checked the waiting requests");
    assert!(*most < 16_000, "{most} bytes copied in a tick");
}
