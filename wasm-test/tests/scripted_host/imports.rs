//! The proxy-wasm host functions that the module may import, over [`World`].

use super::world::{BAD_ARGUMENT, EMPTY, NOT_FOUND, OK, Reply, World};
use std::collections::BTreeMap;
use wasmi::{Caller, Extern, Linker, Memory, Module};

type Guest<'a> = Caller<'a, World>;

fn memory(guest: &Guest<'_>) -> Memory {
    guest
        .get_export("memory")
        .and_then(Extern::into_memory)
        .expect("the module exports its memory")
}

fn read(guest: &Guest<'_>, at: i32, size: i32) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    memory(guest)
        .read(
            guest,
            usize::try_from(at.cast_unsigned()).unwrap(),
            &mut bytes,
        )
        .unwrap();
    bytes
}

fn read_text(guest: &Guest<'_>, at: i32, size: i32) -> String {
    String::from_utf8(read(guest, at, size)).unwrap()
}

fn write(guest: &mut Guest<'_>, at: i32, bytes: &[u8]) {
    memory(guest)
        .write(guest, usize::try_from(at.cast_unsigned()).unwrap(), bytes)
        .unwrap();
}

fn write_u32(guest: &mut Guest<'_>, at: i32, number: u32) {
    write(guest, at, &number.to_le_bytes());
}

/// Hands bytes over in memory that the guest allocates.
fn give(guest: &mut Guest<'_>, bytes: &[u8], data_at: i32, size_at: i32) -> i32 {
    let size = u32::try_from(bytes.len()).unwrap();
    let mut data = 0;
    if size > 0 {
        let allocate = guest
            .get_export("malloc")
            .and_then(Extern::into_func)
            .expect("the module exports malloc");
        let allocate = allocate.typed::<i32, i32>(&*guest).unwrap();
        data = allocate.call(&mut *guest, size.cast_signed()).unwrap();
        write(guest, data, bytes);
    }
    write(guest, data_at, &data.to_le_bytes());
    write_u32(guest, size_at, size);
    OK
}

/// The ABI's form of a map: a count, the sizes, then names and values.
fn map_bytes(map: &[(String, Vec<u8>)]) -> Vec<u8> {
    let count = u32::try_from(map.len()).unwrap();
    let mut bytes = count.to_le_bytes().to_vec();
    for (name, value) in map {
        for size in [name.len(), value.len()] {
            bytes.extend(u32::try_from(size).unwrap().to_le_bytes());
        }
    }
    for (name, value) in map {
        bytes.extend([name.as_bytes(), b"\0", value, b"\0"].concat());
    }
    bytes
}

fn map_from(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let number = |at: usize| {
        usize::try_from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())).unwrap()
    };
    let count = number(0);
    let mut at = 4 + 8 * count;
    let mut part = |size: usize| {
        let part = bytes[at..at + size].to_vec();
        at += size + 1;
        part
    };
    (0..count)
        .map(|n| {
            (
                String::from_utf8(part(number(4 + 8 * n))).unwrap(),
                part(number(8 + 8 * n)),
            )
        })
        .collect()
}

/// Runs an edit on the request in force; without a live one it is a bad
/// argument, which is what makes the SDK panic.
fn edit(guest: &mut Guest<'_>, act: impl FnOnce(&mut super::world::Http)) -> i32 {
    match guest.data_mut().request() {
        Some(http) => {
            act(http);
            OK
        }
        None => BAD_ARGUMENT,
    }
}

/// Every function that the filter may call. The SDK's own table of methods
/// imports more, and calling one of those crashes the VM.
pub fn linker(module: &Module) -> Linker<World> {
    let mut linker = Linker::new(module.engine());
    general(&mut linker);
    requests(&mut linker);
    streams(&mut linker);
    metrics(&mut linker);
    queue(&mut linker);
    for import in module.imports() {
        let (from, name) = (import.module(), import.name().to_owned());
        let Some(signature) = import.ty().func() else {
            panic!("{name} is no function")
        };
        let forbidden = format!("{name} was called, which no filter needs");
        // One that is defined already stays what it is.
        let _defined = linker.func_new(from, &name, signature.clone(), move |_, _, _| {
            Err(wasmi::Error::new(forbidden.clone()))
        });
    }
    linker
}

fn general(linker: &mut Linker<World>) {
    linker
        .func_wrap(
            "env",
            "proxy_log",
            |mut guest: Guest<'_>, _level: i32, at: i32, size: i32| {
                let line = read_text(&guest, at, size);
                guest.data_mut().log.push(line);
                OK
            },
        )
        .unwrap()
        .func_wrap(
            "env",
            "proxy_get_current_time_nanoseconds",
            |mut guest: Guest<'_>, at: i32| {
                let now = guest.data().now_ns;
                write(&mut guest, at, &now.to_le_bytes());
                OK
            },
        )
        .unwrap()
        .func_wrap(
            "env",
            "proxy_set_tick_period_milliseconds",
            |mut guest: Guest<'_>, period: i32| {
                guest.data_mut().tick_ms = period.cast_unsigned();
                OK
            },
        )
        .unwrap()
        .func_wrap(
            "env",
            "proxy_get_buffer_bytes",
            |mut guest: Guest<'_>, kind: i32, start: i32, most: i32, data_at: i32, size_at: i32| {
                let bytes = match kind {
                    0 => match guest.data_mut().request() {
                        Some(http) => http.body.clone(),
                        None => return NOT_FOUND,
                    },
                    5 => guest.data().received.clone(),
                    7 => guest.data().configuration.clone(),
                    _ => return NOT_FOUND,
                };
                let start = usize::try_from(start).unwrap().min(bytes.len());
                let most = usize::try_from(most.cast_unsigned())
                    .unwrap()
                    .min(bytes.len() - start);
                give(&mut guest, &bytes[start..start + most], data_at, size_at)
            },
        )
        .unwrap()
        .func_wrap(
            "env",
            "proxy_set_effective_context",
            |mut guest: Guest<'_>, context: i32| {
                guest.data_mut().set_effective(context.cast_unsigned())
            },
        )
        .unwrap()
        .func_wrap(
            "env",
            "proxy_call_foreign_function",
            |mut guest: Guest<'_>,
             name: i32,
             name_size: i32,
             at: i32,
             size: i32,
             data_at: i32,
             size_at: i32| {
                if read_text(&guest, name, name_size) != "verify_signature" {
                    return NOT_FOUND;
                }
                let arguments = read(&guest, at, size);
                match guest.data_mut().verify_signature(&arguments) {
                    Ok(result) => give(&mut guest, &result, data_at, size_at),
                    Err(status) => status,
                }
            },
        )
        .unwrap();
}

fn requests(linker: &mut Linker<World>) {
    linker
        .func_wrap(
            "env",
            "proxy_get_header_map_pairs",
            |mut guest: Guest<'_>, kind: i32, data_at: i32, size_at: i32| {
                let of = |http: &mut super::world::Http| match kind {
                    0 => http.headers.clone(),
                    1 => http.trailers.clone(),
                    2 => http.response.clone(),
                    _ => panic!("headers of kind {kind} are read"),
                };
                let Some(headers) = guest.data_mut().request().map(of) else {
                    return BAD_ARGUMENT;
                };
                give(&mut guest, &map_bytes(&headers), data_at, size_at)
            },
        )
        .unwrap()
        .func_wrap(
            "env",
            "proxy_remove_header_map_value",
            |mut guest: Guest<'_>, kind: i32, at: i32, size: i32| {
                let name = read_text(&guest, at, size);
                edit(&mut guest, |http| {
                    let headers = match kind {
                        1 => &mut http.trailers,
                        2 => &mut http.response,
                        _ => &mut http.headers,
                    };
                    headers.retain(|(known, _)| *known != name);
                })
            },
        )
        .unwrap()
        .func_wrap(
            "env",
            "proxy_replace_header_map_value",
            |mut guest: Guest<'_>,
             _kind: i32,
             at: i32,
             size: i32,
             value_at: i32,
             value_size: i32| {
                let (name, value) = (
                    read_text(&guest, at, size),
                    read(&guest, value_at, value_size),
                );
                edit(&mut guest, |http| {
                    http.headers.retain(|(known, _)| *known != name);
                    http.headers.push((name, value));
                })
            },
        )
        .unwrap()
        .func_wrap(
            "env",
            "proxy_continue_stream",
            |mut guest: Guest<'_>, kind: i32| {
                assert_eq!(kind, 0, "only requests are resumed");
                edit(&mut guest, |http| http.resumed += 1)
            },
        )
        .unwrap()
        .func_wrap("env", "proxy_send_local_response", local_response)
        .unwrap()
        .func_wrap(
            "env",
            "proxy_close_stream",
            |mut guest: Guest<'_>, kind: i32| {
                assert_eq!(kind, 0, "only requests are reset");
                edit(&mut guest, |http| {
                    assert!(http.resumed > 0, "what has not gone on is refused");
                    http.reset += 1;
                })
            },
        )
        .unwrap()
        .func_wrap(
            "env",
            "proxy_get_property",
            |mut guest: Guest<'_>, at: i32, size: i32, data_at: i32, size_at: i32| {
                let path = read_text(&guest, at, size).replace('\0', ".");
                match guest.data().property(&path) {
                    Some(value) => give(&mut guest, &value, data_at, size_at),
                    None => NOT_FOUND,
                }
            },
        )
        .unwrap()
        .func_wrap(
            "env",
            "proxy_set_property",
            |mut guest: Guest<'_>, at: i32, size: i32, value_at: i32, value_size: i32| {
                let name = read_text(&guest, at, size);
                let name = name
                    .strip_prefix("writ.")
                    .expect("a name of ours")
                    .to_owned();
                let value = read_text(&guest, value_at, value_size);
                edit(&mut guest, |http| match name.as_str() {
                    "reason" => http.reason = value,
                    "passed" => drop(
                        http.properties
                            .insert("writ.passed".to_owned(), value.into_bytes()),
                    ),
                    _ => drop(http.facts.insert(name, value)),
                })
            },
        )
        .unwrap();
}

#[expect(clippy::too_many_arguments, reason = "the ABI's own signature")]
fn local_response(
    mut guest: Guest<'_>,
    status: i32,
    _details: i32,
    _details_size: i32,
    body_at: i32,
    body_size: i32,
    headers_at: i32,
    headers_size: i32,
    _grpc: i32,
) -> i32 {
    let body =
        serde_json::from_slice(&read(&guest, body_at, body_size)).expect("refusals are JSON");
    let headers: BTreeMap<String, String> = map_from(&read(&guest, headers_at, headers_size))
        .into_iter()
        .map(|(name, value)| (name, String::from_utf8(value).unwrap()))
        .collect();
    edit(&mut guest, |http| {
        assert!(http.reply.is_none(), "a request is answered once");
        assert_eq!(http.resumed, 0, "a request that went on is not answered");
        http.reply = Some(Reply {
            status: status.cast_unsigned(),
            headers,
            body,
        });
    })
}

fn streams(linker: &mut Linker<World>) {
    linker
        .func_wrap("env", "proxy_grpc_stream", grpc_stream)
        .unwrap()
        .func_wrap(
            "env",
            "proxy_grpc_send",
            |mut guest: Guest<'_>, token: i32, at: i32, size: i32, _end: i32| {
                let message = read(&guest, at, size);
                guest.data_mut().send(token.cast_unsigned(), &message)
            },
        )
        .unwrap()
        .func_wrap(
            "env",
            "proxy_grpc_cancel",
            |mut guest: Guest<'_>, token: i32| match guest
                .data_mut()
                .streams
                .get_mut(&token.cast_unsigned())
            {
                Some(stream) if stream.open => {
                    stream.open = false;
                    OK
                }
                _ => NOT_FOUND,
            },
        )
        .unwrap();
}

#[expect(clippy::too_many_arguments, reason = "the ABI's own signature")]
fn grpc_stream(
    mut guest: Guest<'_>,
    upstream_at: i32,
    upstream_size: i32,
    service_at: i32,
    service_size: i32,
    method_at: i32,
    method_size: i32,
    _metadata: i32,
    _metadata_size: i32,
    token_at: i32,
) -> i32 {
    let upstream = read(&guest, upstream_at, upstream_size);
    let method = format!(
        "/{}/{}",
        read_text(&guest, service_at, service_size),
        read_text(&guest, method_at, method_size)
    );
    match guest.data_mut().open_stream(upstream, method) {
        Ok(token) => {
            write_u32(&mut guest, token_at, token);
            OK
        }
        Err(status) => status,
    }
}

fn queue(linker: &mut Linker<World>) {
    const QUEUE: i32 = 1;
    linker
        .func_wrap(
            "env",
            "proxy_register_shared_queue",
            |mut guest: Guest<'_>, at: i32, size: i32, id_at: i32| {
                assert_eq!(read_text(&guest, at, size), "writ.left");
                write_u32(&mut guest, id_at, QUEUE.cast_unsigned());
                OK
            },
        )
        .unwrap()
        .func_wrap(
            "env",
            "proxy_enqueue_shared_queue",
            |mut guest: Guest<'_>, id: i32, at: i32, size: i32| {
                assert_eq!(id, QUEUE);
                let message = read(&guest, at, size);
                guest.data_mut().queue.push_back(message);
                OK
            },
        )
        .unwrap()
        .func_wrap(
            "env",
            "proxy_dequeue_shared_queue",
            |mut guest: Guest<'_>, id: i32, data_at: i32, size_at: i32| {
                assert_eq!(id, QUEUE);
                match guest.data_mut().queue.pop_front() {
                    Some(message) => give(&mut guest, &message, data_at, size_at),
                    None => EMPTY,
                }
            },
        )
        .unwrap();
}

fn metrics(linker: &mut Linker<World>) {
    linker
        .func_wrap(
            "env",
            "proxy_define_metric",
            |mut guest: Guest<'_>, _kind: i32, at: i32, size: i32, id_at: i32| {
                let name = read_text(&guest, at, size);
                let id = u32::try_from(guest.data().metrics.len()).unwrap();
                guest.data_mut().metrics.insert(id, (name, 0));
                write_u32(&mut guest, id_at, id);
                OK
            },
        )
        .unwrap()
        .func_wrap(
            "env",
            "proxy_record_metric",
            |mut guest: Guest<'_>, id: i32, value: i64| {
                guest
                    .data_mut()
                    .metrics
                    .get_mut(&id.cast_unsigned())
                    .expect("a defined metric")
                    .1 = value;
                OK
            },
        )
        .unwrap()
        .func_wrap(
            "env",
            "proxy_increment_metric",
            |mut guest: Guest<'_>, id: i32, amount: i64| {
                guest
                    .data_mut()
                    .metrics
                    .get_mut(&id.cast_unsigned())
                    .expect("a defined metric")
                    .1 += amount;
                OK
            },
        )
        .unwrap();
}
