//! The module with `capability` in it, and the same code beside it.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::OnceLock;

use serde_json::Value;
use wasmi::{Engine, Instance, Linker, Memory, Module, Store, TypedFunc};

/// The module in an interpreter that gives it nothing to call.
struct Guest {
    store: Store<()>,
    memory: Memory,
    input: TypedFunc<u32, u32>,
    run: TypedFunc<u32, u32>,
    output: TypedFunc<(), u32>,
}

fn module() -> &'static Module {
    static MODULE: OnceLock<Module> = OnceLock::new();
    MODULE.get_or_init(|| {
        let path = std::env::var_os("WRIT_PROBE_WASM").map(PathBuf::from).expect(
            "WRIT_PROBE_WASM must hold the absolute path of the built probe.wasm: run `cargo xtask test`, which builds it",
        );
        let bytes = std::fs::read(&path)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        Module::new(&Engine::default(), bytes).expect("the probe is a valid module")
    })
}

impl Guest {
    fn new() -> Self {
        let module = module();
        assert_eq!(module.imports().count(), 0, "capability needs no host");
        let mut store = Store::new(module.engine(), ());
        let linker = Linker::new(module.engine());
        let instance: Instance = linker.instantiate_and_start(&mut store, module).unwrap();
        Self {
            memory: instance.get_memory(&store, "memory").unwrap(),
            input: instance.get_typed_func(&store, "probe_input").unwrap(),
            run: instance.get_typed_func(&store, "probe_run").unwrap(),
            output: instance.get_typed_func(&store, "probe_output").unwrap(),
            store,
        }
    }

    fn verdict(&mut self, place: usize, input: &[u8]) -> String {
        let size = u32::try_from(input.len()).unwrap();
        let at = self.input.call(&mut self.store, size).unwrap();
        let at = usize::try_from(at).unwrap();
        self.memory.write(&mut self.store, at, input).unwrap();
        let place = u32::try_from(place).unwrap();
        let size = self.run.call(&mut self.store, place);
        let size = size.unwrap_or_else(|trap| panic!("the module crashed: {trap}; {input:?}"));
        let at = self.output.call(&mut self.store, ()).unwrap();
        let mut verdict = vec![0; usize::try_from(size).unwrap()];
        let at = usize::try_from(at).unwrap();
        self.memory.read(&self.store, at, &mut verdict).unwrap();
        String::from_utf8(verdict).unwrap()
    }
}

/// What a probe says of an input, here and in the module alike.
pub fn both(name: &str, input: &[u8]) -> String {
    thread_local! {
        static GUEST: RefCell<Guest> = RefCell::new(Guest::new());
    }
    let place = probe::place(name).expect(name);
    let here = probe::run(name, input).unwrap();
    let there = GUEST.with_borrow_mut(|guest| guest.verdict(place, input));
    assert_eq!(
        here,
        there,
        "{name} of {:?}",
        input.escape_ascii().to_string()
    );
    assert!(!here.contains("can't read its input"), "{here}");
    here
}

/// As [`both`], of an input that is composed.
pub fn both_of(name: &str, input: &Value) -> String {
    both(name, input.to_string().as_bytes())
}
