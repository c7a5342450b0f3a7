//! One VM with the built module in it, driven as Envoy drives it.

use super::fixtures::{Headers, START_S};
use super::world::{Http, ROOT, Reply, World};
use decision_api::from_control_plane::Message as FromServer;
use decision_api::from_filter::Message as ToServer;
use decision_api::{
    Allow, Answer, Ask, DenialBatch, Deny, End, FromControlPlane, Heartbeat, Hello, Hold,
    OpenRequests, Outcome, PROTOCOL, QuestionId, Welcome, Withdraw, Withdrawn, answer,
};
use prost::Message;
use std::path::PathBuf;
use std::sync::OnceLock;
use wasmi::{CallHook, Engine, Instance, Module, Store, WasmParams, WasmResults};

/// What a callback returns.
pub const CONTINUE: i32 = 0;
pub const PAUSE: i32 = 1;

/// The prefix that the scripted control plane gives.
pub const PREFIX: &[u8; 16] = b"first prefix....";

/// The module under test.
pub fn module() -> &'static Module {
    static MODULE: OnceLock<Module> = OnceLock::new();
    MODULE.get_or_init(|| {
        let path = std::env::var_os("WRIT_FILTER_WASM").map(PathBuf::from).expect(
            "WRIT_FILTER_WASM must hold the absolute path of the built filter.wasm: run `cargo xtask test`, which builds it",
        );
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        Module::new(&Engine::default(), bytes).expect("the filter is a valid module")
    })
}

pub struct Vm {
    store: Store<World>,
    instance: Instance,
    next_context: u32,
    /// Messages of the newest stream that a test has looked at already.
    seen: usize,
    /// Outcomes of the newest stream that a test has looked at already.
    seen_outcomes: usize,
    /// The stream that was welcomed last.
    welcomed: Option<u32>,
    /// What the filter has told of what is open there.
    told: Vec<OpenRequests>,
    /// The nonces that the scripted control plane says.
    pub nonces: Vec<String>,
}

impl Vm {
    /// A VM with a root context and this configuration; whether it was taken.
    pub fn configure(world: World, configuration: impl AsRef<[u8]>) -> (Self, bool) {
        let module = module();
        let engine = module.engine().clone();
        let world = World {
            configuration: configuration.as_ref().to_vec(),
            now_ns: START_S * 1_000_000_000,
            control_plane_reachable: true,
            ..world
        };
        let mut store = Store::new(&engine, world);
        store.call_hook(|world, call| {
            if matches!(call, CallHook::CallingHost) {
                world.host_calls += 1;
            }
            Ok(())
        });
        let linker = super::imports::linker(module);
        let instance = linker
            .instantiate_and_start(&mut store, module)
            .expect("the module links");
        let mut vm = Self {
            store,
            instance,
            next_context: ROOT + 1,
            seen: 0,
            seen_outcomes: 0,
            welcomed: None,
            told: Vec::new(),
            nonces: Vec::new(),
        };
        vm.call::<(), ()>(ROOT, "_initialize", ());
        vm.call::<_, ()>(ROOT, "proxy_on_context_create", (ROOT.cast_signed(), 0));
        let started: i32 = vm.call(ROOT, "proxy_on_vm_start", (ROOT.cast_signed(), 0));
        assert_eq!(started, 1);
        let size = i32::try_from(vm.world().configuration.len()).unwrap();
        let taken: i32 = vm.call(ROOT, "proxy_on_configure", (ROOT.cast_signed(), size));
        (vm, taken == 1)
    }

    /// A configured VM with a stream that the control plane has welcomed.
    pub fn ready() -> Self {
        Self::ready_with(World::default(), &super::fixtures::configuration())
    }

    pub fn ready_with(world: World, configuration: &serde_json::Value) -> Self {
        let (mut vm, taken) = Self::configure(world, configuration.to_string());
        assert!(taken, "{:?}", vm.world().log);
        vm.tick();
        vm.welcome(PREFIX);
        vm
    }

    /// As [`Vm::ready`] under this configuration, with a control plane that says these
    /// nonces.
    pub fn ready_asking(configuration: &serde_json::Value, nonces: &[&str]) -> Self {
        let (mut vm, taken) = Self::configure(World::default(), configuration.to_string());
        assert!(taken, "{:?}", vm.world().log);
        vm.nonces = nonces.iter().map(|it| (*it).to_owned()).collect();
        vm.tick();
        vm.welcome(PREFIX);
        vm
    }

    /// What the scripted control plane says each second.
    pub fn heartbeat(&self) -> Heartbeat {
        Heartbeat {
            time_ms: 0,
            nonces: self.nonces.clone(),
        }
    }

    pub fn world(&mut self) -> &mut World {
        self.store.data_mut()
    }

    /// Calls an export. A trap is a crashed VM, and fails the test.
    fn call<P: WasmParams, R: WasmResults>(&mut self, context: u32, name: &str, arguments: P) -> R {
        self.world().enter_callback(context);
        let export = self
            .instance
            .get_typed_func::<P, R>(&self.store, name)
            .expect(name);
        let result = export.call(&mut self.store, arguments);
        result.unwrap_or_else(|trap| {
            panic!(
                "{name} crashed the VM: {trap}; log: {:?}",
                self.store.data().log
            )
        })
    }

    // ---- time --------------------------------------------------------------

    /// One tick, as long as the filter asked for.
    pub fn tick(&mut self) {
        let period = u64::from(self.world().tick_ms);
        self.world().now_ns += period * 1_000_000;
        self.call::<_, ()>(ROOT, "proxy_on_tick", ROOT.cast_signed());
    }

    /// Ticks until so much time has passed, in which the control plane says nothing.
    pub fn pass_in_silence_ms(&mut self, span_ms: u64) {
        let end = self.world().now_ns + span_ms * 1_000_000;
        while self.world().now_ns < end {
            self.tick();
        }
    }

    /// The same, but it sends its heartbeats on a stream that it has welcomed.
    pub fn pass_ms(&mut self, span_ms: u64) {
        let end = self.world().now_ns + span_ms * 1_000_000;
        while self.world().now_ns < end {
            let left = (end - self.world().now_ns).div_ceil(1_000_000);
            self.pass_in_silence_ms(left.min(1_000));
            if let Some(stream) = self.welcomed
                && self.world().streams[&stream].open
            {
                self.say_on(stream, FromServer::Heartbeat(self.heartbeat()));
            }
        }
    }

    // ---- requests ------------------------------------------------------------

    /// A request's headers arrive: its context, which must be paused or refused.
    pub fn request(&mut self, headers: &Headers) -> u32 {
        self.arrive(headers, false)
    }

    /// As [`Vm::request`], and perhaps the request ends with them.
    pub fn arrive(&mut self, headers: &Headers, ended: bool) -> u32 {
        let (context, action) = self.arrive_with(headers, ended, &[]);
        // On a route that observes, what would have been refused goes on at once.
        let observed = self.http(context).facts.contains_key("observed");
        let wanted = if observed { CONTINUE } else { PAUSE };
        assert_eq!(action, wanted, "what goes on from the header callback");
        context
    }

    /// As [`Vm::arrive`], with more properties, and what the callback said.
    pub fn arrive_with(
        &mut self,
        headers: &Headers,
        ended: bool,
        properties: &[(&str, &[u8])],
    ) -> (u32, i32) {
        let context = self.next_context;
        self.next_context += 1;
        let mut http = Http {
            headers: headers.0.clone(),
            alive: true,
            ..Http::default()
        };
        http.properties
            .insert("source.address".to_owned(), b"10.1.2.3:40000".to_vec());
        let route = self.world().route_name.clone();
        http.properties
            .insert("xds.route_name".to_owned(), route.into_bytes());
        for (name, value) in properties {
            http.properties.insert((*name).to_owned(), value.to_vec());
        }
        self.world().http.insert(context, http);
        self.call::<_, ()>(
            context,
            "proxy_on_context_create",
            (context.cast_signed(), ROOT.cast_signed()),
        );
        let count = i32::try_from(headers.0.len()).unwrap();
        let action: i32 = self.call(
            context,
            "proxy_on_request_headers",
            (context.cast_signed(), count, i32::from(ended)),
        );
        (context, action)
    }

    /// More of the body comes, which the host keeps, and perhaps its end.
    pub fn more(&mut self, context: u32, bytes: &[u8], ended: bool) -> i32 {
        let http = self.world().http.get_mut(&context).unwrap();
        http.body.extend_from_slice(bytes);
        let size = i32::try_from(http.body.len()).unwrap();
        self.call(
            context,
            "proxy_on_request_body",
            (context.cast_signed(), size, i32::from(ended)),
        )
    }

    /// The request went on though it would have been refused for this reason, with
    /// neither credentials nor anything that says who sent it.
    pub fn assert_observed(&mut self, context: u32, reason: &str) {
        let http = self.http(context);
        assert!(http.reply.is_none(), "{:?}", http.reply);
        assert_eq!(http.reason, reason);
        assert_eq!(http.facts["observed"], "true");
        for (name, _) in &http.headers {
            let ours = name.starts_with("x-writ-");
            assert!(!ours && name != "authorization" && name != "dpop", "{name}");
        }
        assert_eq!(
            (self.body(context), self.trailers(context)),
            (CONTINUE, CONTINUE)
        );
    }

    pub fn body(&mut self, context: u32) -> i32 {
        self.call(
            context,
            "proxy_on_request_body",
            (context.cast_signed(), 4096, 0),
        )
    }

    pub fn trailers(&mut self, context: u32) -> i32 {
        self.call(
            context,
            "proxy_on_request_trailers",
            (context.cast_signed(), 1),
        )
    }

    /// The upstream answers, and the request ends.
    pub fn respond(&mut self, context: u32, status: i64) {
        self.answered_by_upstream(context, status);
        self.end(context);
    }

    /// The upstream's answer begins.
    pub fn answered_by_upstream(&mut self, context: u32, status: i64) {
        let http = self.world().http.get_mut(&context).unwrap();
        let status = (":status".to_owned(), status.to_string().into_bytes());
        http.response.push(status);
        http.properties
            .insert("response.code_details".to_owned(), b"via_upstream".to_vec());
        http.properties
            .insert("response.size".to_owned(), 42_i64.to_le_bytes().to_vec());
        let action: i32 = self.call(
            context,
            "proxy_on_response_headers",
            (context.cast_signed(), 3, 0),
        );
        assert_eq!(action, CONTINUE);
    }

    /// The client is gone, or the response is over: Envoy logs, then is done.
    pub fn end(&mut self, context: u32) {
        self.call::<_, ()>(context, "proxy_on_log", context.cast_signed());
        self.world().http.get_mut(&context).unwrap().alive = false;
        let done: i32 = self.call(context, "proxy_on_done", context.cast_signed());
        assert_eq!(done, 1);
        self.call::<_, ()>(context, "proxy_on_delete", context.cast_signed());
    }

    pub fn http(&mut self, context: u32) -> &Http {
        &self.store.data().http[&context]
    }

    /// How often the request was let through, by whatever way.
    pub fn resumed(&mut self, context: u32) -> usize {
        self.http(context).resumed
    }

    pub fn reply(&mut self, context: u32) -> Reply {
        self.http(context)
            .reply
            .clone()
            .expect("the request was answered here")
    }

    /// The request waits: neither let through nor answered, and its body neither.
    pub fn assert_paused(&mut self, context: u32) {
        assert_eq!(self.resumed(context), 0);
        assert!(
            self.http(context).reply.is_none(),
            "{:?}",
            self.http(context).reply
        );
        assert_eq!(self.body(context), PAUSE);
        assert_eq!(self.trailers(context), PAUSE);
    }

    /// The request was refused for this reason, and nothing of it went on.
    pub fn assert_refused(&mut self, context: u32, status: u32, reason: &str) -> Reply {
        let reply = self.reply(context);
        assert_eq!(
            (reply.status, reply.body["reason"].as_str()),
            (status, Some(reason)),
            "{reply:?}"
        );
        assert_eq!(reply.body["type"], reply.body["reason"]);
        assert_eq!(reply.headers["content-type"], "application/problem+json");
        // What is for clients is for a page's script as well.
        let exposed = &reply.headers["access-control-expose-headers"];
        for name in ["X-Writ-Reason", "WWW-Authenticate", "DPoP-Nonce"] {
            let is_there = reply.headers.contains_key(&name.to_lowercase());
            let is_exposed = exposed.split(", ").any(|it| it == name);
            assert_eq!(is_exposed, is_there, "{name}: {reply:?}");
        }
        assert_eq!(reply.headers["x-writ-reason"], reason);
        assert_eq!(self.http(context).reason, reason);
        assert_eq!(self.resumed(context), 0);
        assert_eq!(self.body(context), PAUSE);
        reply
    }

    /// The VM lives: the next good request goes through.
    pub fn assert_serves(&mut self) {
        let context = self.request(&Headers::good(
            "/after",
            &format!("after-{}", self.next_context),
        ));
        let ask = self.asked();
        self.answer(&ask, allow());
        assert_eq!(self.resumed(context), 1, "{:?}", self.http(context));
    }

    // ---- the control plane -----------------------------------------------------

    pub fn newest_stream(&mut self) -> u32 {
        *self
            .world()
            .streams
            .keys()
            .last()
            .expect("a stream was opened")
    }

    pub fn say_on(&mut self, stream: u32, message: FromServer) {
        let bytes = FromControlPlane {
            message: Some(message),
        }
        .encode_to_vec();
        self.say_bytes(stream, &bytes);
    }

    pub fn say_bytes(&mut self, stream: u32, bytes: &[u8]) {
        self.world().received = bytes.to_vec();
        let size = i32::try_from(bytes.len()).unwrap();
        self.call::<_, ()>(
            ROOT,
            "proxy_on_grpc_receive",
            (ROOT.cast_signed(), stream.cast_signed(), size),
        );
    }

    pub fn say(&mut self, message: FromServer) {
        let stream = self.newest_stream();
        self.say_on(stream, message);
    }

    /// Reads the greeting and answers it.
    pub fn welcome(&mut self, prefix: &[u8; 16]) -> Hello {
        self.seen = 0;
        self.seen_outcomes = 0;
        let Some(ToServer::Hello(hello)) = self.heard().into_iter().next() else {
            panic!("the filter greets first");
        };
        self.welcomed = Some(self.newest_stream());
        self.told.clear();
        self.say(FromServer::Welcome(Welcome {
            protocol: PROTOCOL,
            prefix: prefix.to_vec(),
            time_ms: 0,
            nonces: self.nonces.clone(),
        }));
        hello
    }

    /// The stream ends.
    pub fn cut(&mut self) {
        let stream = self.newest_stream();
        self.world().streams.get_mut(&stream).unwrap().open = false;
        self.call::<_, ()>(
            ROOT,
            "proxy_on_grpc_close",
            (ROOT.cast_signed(), stream.cast_signed(), 14),
        );
    }

    /// What the filter has sent on the newest stream since the last look.
    pub fn heard(&mut self) -> Vec<ToServer> {
        let (stream, seen) = (self.newest_stream(), self.seen);
        let sent = &self.store.data().streams[&stream].sent;
        self.seen = sent.len();
        let fresh = sent[seen.min(sent.len())..].iter();
        let fresh = fresh.filter_map(|message| message.message.clone());
        let mut heard = Vec::new();
        for message in fresh {
            match message {
                ToServer::Open(part) => {
                    assert!(heard.is_empty(), "what is open is told first");
                    self.told.push(part);
                }
                other => heard.push(other),
            }
        }
        heard
    }

    /// What it told of open requests on the newest stream, in however many parts; only
    /// the last of these says that it is. What else was heard counts as looked at.
    pub fn told(&mut self) -> OpenRequests {
        self.heard();
        let (last, others) = self.told.split_last().expect("nothing was told");
        assert!(last.last && !others.iter().any(|part| part.last));
        let mut all = OpenRequests::default();
        for part in &self.told {
            all.open.extend(part.open.clone());
            all.asked.extend(part.asked.clone());
        }
        all
    }

    /// The control plane ends open requests.
    pub fn end_open(&mut self, ids: Vec<QuestionId>, reason: &str) {
        self.say(FromServer::End(End {
            ids,
            reason: reason.to_owned(),
        }));
    }

    /// The outcomes that the filter has sent on the newest stream since the last
    /// look, whatever they came with.
    pub fn outcomes(&mut self) -> Vec<Outcome> {
        let stream = self.newest_stream();
        let sent = self.store.data().streams[&stream].sent.iter();
        let outcomes: Vec<Outcome> = sent.flat_map(|message| message.outcomes.clone()).collect();
        let seen = std::mem::replace(&mut self.seen_outcomes, outcomes.len());
        outcomes[seen.min(outcomes.len())..].to_vec()
    }

    /// What the filter has counted, which it tells on a tick.
    pub fn metric(&mut self, name: &str) -> i64 {
        self.tick();
        self.world().metric(name)
    }

    /// Calls of host functions so far.
    pub fn host_calls(&mut self) -> usize {
        self.world().host_calls
    }

    /// The configuration goes away: Envoy is done with the root context.
    pub fn shut_down(&mut self) {
        let done: i32 = self.call(ROOT, "proxy_on_done", ROOT.cast_signed());
        assert_eq!(done, 1);
    }

    /// The one question that was asked since the last look.
    pub fn asked(&mut self) -> Ask {
        let asks = self
            .heard()
            .into_iter()
            .filter_map(|message| match message {
                ToServer::Ask(ask) => Some(ask),
                _ => None,
            });
        let mut asks: Vec<Ask> = asks.collect();
        assert_eq!(asks.len(), 1, "one question");
        asks.remove(0)
    }

    pub fn answer(&mut self, ask: &Ask, verdict: answer::Verdict) {
        self.say(FromServer::Answer(answer_to(ask, verdict)));
    }

    pub fn withdrawn(&mut self, id: &QuestionId, confirmed: bool) {
        self.say(FromServer::Withdrawn(Withdrawn {
            id: Some(id.clone()),
            confirmed,
        }));
    }
}

/// An answer that fits its question.
pub fn answer_to(ask: &Ask, verdict: answer::Verdict) -> Answer {
    let question = decision_api::Question::decode(ask.question.as_slice()).unwrap();
    Answer {
        id: ask.id.clone(),
        token_hash: question.token_hash,
        question_digest: capability::sha256(&ask.question).to_vec(),
        verdict: Some(verdict),
        time_ms: 0,
    }
}

pub fn allow() -> answer::Verdict {
    answer::Verdict::Allow(Allow {
        agent: super::fixtures::AGENT.to_owned(),
        user: String::new(),
        token_id: "token-1".to_owned(),
        txn: "task-1".to_owned(),
        decision: String::new(),
        lineage: Vec::new(),
    })
}

pub fn deny(reason: &str) -> answer::Verdict {
    answer::Verdict::Deny(Deny {
        reason: reason.to_owned(),
        ..Deny::default()
    })
}

pub fn hold(wait_ms: u32) -> answer::Verdict {
    answer::Verdict::Hold(Hold {
        wait_ms,
        approval_id: "apr_1".to_owned(),
        status_url: "http://127.0.0.1:8480/approvals/apr_1/status".to_owned(),
    })
}

/// The messages of one kind among those that were heard.
pub fn withdrawals(heard: &[ToServer]) -> Vec<&Withdraw> {
    heard
        .iter()
        .filter_map(|m| {
            if let ToServer::Withdraw(withdraw) = m {
                Some(withdraw)
            } else {
                None
            }
        })
        .collect()
}

pub fn asks(heard: &[ToServer]) -> Vec<&Ask> {
    heard
        .iter()
        .filter_map(|m| {
            if let ToServer::Ask(ask) = m {
                Some(ask)
            } else {
                None
            }
        })
        .collect()
}

pub fn batches(heard: &[ToServer]) -> Vec<&DenialBatch> {
    heard
        .iter()
        .filter_map(|m| {
            if let ToServer::Denials(batch) = m {
                Some(batch)
            } else {
                None
            }
        })
        .collect()
}
