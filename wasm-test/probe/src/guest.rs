//! The module of this crate in an interpreter that gives it nothing to call.

use std::fmt;
use std::path::PathBuf;

use wasmi::{Engine, Linker, Memory, Module, Store, TypedFunc};

/// The variable with the module's path; `cargo xtask` sets it.
const VARIABLE: &str = "WRIT_PROBE_WASM";

/// The module can't be run, or crashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault(String);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

fn fault<E: fmt::Display>(what: &'static str) -> impl Fn(E) -> Fault {
    move |error| Fault(format!("{what}: {error}"))
}

/// One instance of the module.
pub struct Guest {
    store: Store<()>,
    memory: Memory,
    input: TypedFunc<u32, u32>,
    run: TypedFunc<u32, u32>,
    output: TypedFunc<(), u32>,
}

impl Guest {
    /// An instance of the module that the environment names.
    ///
    /// # Errors
    /// There is none, or it is no such module.
    pub fn from_env() -> Result<Self, Fault> {
        let path = std::env::var_os(VARIABLE)
            .map(PathBuf::from)
            .ok_or_else(|| {
                Fault(format!(
                    "{VARIABLE} must hold the absolute path of the built probe.wasm: \
                 run this through `cargo xtask`, which builds it"
                ))
            })?;
        let bytes = std::fs::read(&path).map_err(fault("cannot read the module"))?;
        Self::new(&bytes)
    }

    /// An instance of this module.
    ///
    /// # Errors
    /// It is no such module: it wants functions of its host, or lacks its own.
    pub fn new(module: &[u8]) -> Result<Self, Fault> {
        let engine = Engine::default();
        let module = Module::new(&engine, module).map_err(fault("not a valid module"))?;
        let mut store = Store::new(&engine, ());
        let instance = Linker::new(&engine)
            .instantiate_and_start(&mut store, &module)
            .map_err(fault("capability needs no host, but this module does"))?;
        let missing = fault("the module lacks a function");
        Ok(Self {
            memory: instance
                .get_memory(&store, "memory")
                .ok_or_else(|| Fault("the module exports no memory".to_owned()))?,
            input: instance
                .get_typed_func(&store, "probe_input")
                .map_err(&missing)?,
            run: instance
                .get_typed_func(&store, "probe_run")
                .map_err(&missing)?,
            output: instance
                .get_typed_func(&store, "probe_output")
                .map_err(&missing)?,
            store,
        })
    }

    /// What the probe at this place of [`crate::PROBES`] says of the input.
    ///
    /// # Errors
    /// The module crashed.
    pub fn verdict(&mut self, place: usize, input: &[u8]) -> Result<String, Fault> {
        let number = |size| u32::try_from(size).map_err(fault("too large"));
        let address = |at| usize::try_from(at).map_err(fault("too large"));
        let crashed = fault("the module crashed");
        let at = self.input.call(&mut self.store, number(input.len())?);
        let at = address(at.map_err(&crashed)?)?;
        let outside = fault("outside the memory");
        self.memory
            .write(&mut self.store, at, input)
            .map_err(&outside)?;
        let size = self.run.call(&mut self.store, number(place)?);
        let mut verdict = vec![0; address(size.map_err(&crashed)?)?];
        let at = self.output.call(&mut self.store, ());
        let at = address(at.map_err(&crashed)?)?;
        self.memory
            .read(&self.store, at, &mut verdict)
            .map_err(outside)?;
        String::from_utf8(verdict).map_err(fault("not UTF-8"))
    }
}
