//! The access log: one JSON object for each request, escaped by Envoy.

use std::collections::BTreeMap;

use envoy_types::pb::{
    envoy::config::accesslog::v3::{AccessLog as EnvoyLog, access_log::ConfigType},
    google::protobuf::{Any, Value, value::Kind},
};
use prost::Message;

use crate::{AccessLog, SettingsError};

/// Where the filter leaves its reason for the access log: the filter sets the
/// property `writ.reason`, which Envoy keeps under this name.
pub const REASON_FILTER_STATE: &str = "wasm.writ.reason";

/// What is logged. Neither credentials nor anything that could carry them: the
/// path is there without its query.
const FIELDS: [(&str, &str); 19] = [
    ("time", "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%"),
    ("request_id", "%STREAM_ID%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%PATH(NQ:PATH)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("protocol", "%PROTOCOL%"),
    ("status", "%RESPONSE_CODE%"),
    ("reason", "%FILTER_STATE(wasm.writ.reason:PLAIN)%"),
    ("observed", "%FILTER_STATE(wasm.writ.observed:PLAIN)%"),
    ("ended", "%FILTER_STATE(wasm.writ.ended:PLAIN)%"),
    ("token_id", "%FILTER_STATE(wasm.writ.token_id:PLAIN)%"),
    ("question", "%FILTER_STATE(wasm.writ.question:PLAIN)%"),
    ("decision_us", "%FILTER_STATE(wasm.writ.decision_us:PLAIN)%"),
    ("details", "%RESPONSE_CODE_DETAILS%"),
    ("flags", "%RESPONSE_FLAGS%"),
    ("route", "%ROUTE_NAME%"),
    ("peer", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration_ms", "%DURATION%"),
];

// The generated messages keep their maps unordered, so that the same log would
// have another version at every start. These are the same messages, ordered.

#[derive(Clone, PartialEq, Message)]
struct OrderedStruct {
    #[prost(btree_map = "string, message", tag = "1")]
    fields: BTreeMap<String, Value>,
}

#[derive(Clone, PartialEq, Message)]
struct OrderedFormat {
    #[prost(message, optional, tag = "2")]
    json_format: Option<OrderedStruct>,
}

#[derive(Clone, PartialEq, Message)]
struct OrderedStdoutLog {
    #[prost(message, optional, tag = "1")]
    log_format: Option<OrderedFormat>,
}

#[derive(Clone, PartialEq, Message)]
struct OrderedFileLog {
    #[prost(string, tag = "1")]
    path: String,
    #[prost(message, optional, tag = "5")]
    log_format: Option<OrderedFormat>,
}

pub(crate) fn build(log: &AccessLog) -> Result<Vec<EnvoyLog>, SettingsError> {
    let (name, type_name, value) = match log {
        AccessLog::Off => return Ok(Vec::new()),
        AccessLog::Stdout => (
            "envoy.access_loggers.stdout",
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            OrderedStdoutLog {
                log_format: Some(format()),
            }
            .encode_to_vec(),
        ),
        AccessLog::File(path) => (
            "envoy.access_loggers.file",
            "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            OrderedFileLog {
                path: path.to_str().ok_or(SettingsError::LogPath)?.to_owned(),
                log_format: Some(format()),
            }
            .encode_to_vec(),
        ),
    };
    Ok(vec![EnvoyLog {
        name: name.to_owned(),
        config_type: Some(ConfigType::TypedConfig(Any {
            type_url: format!("type.googleapis.com/{type_name}"),
            value,
        })),
        ..Default::default()
    }])
}

fn format() -> OrderedFormat {
    let fields = FIELDS
        .iter()
        .map(|(name, command)| {
            let value = Value {
                kind: Some(Kind::StringValue((*command).to_owned())),
            };
            ((*name).to_owned(), value)
        })
        .collect();
    OrderedFormat {
        json_format: Some(OrderedStruct { fields }),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::{
        config::core::v3::substitution_format_string::Format,
        extensions::access_loggers::{
            file::v3::{FileAccessLog, file_access_log::AccessLogFormat as FileFormat},
            stream::v3::{StdoutAccessLog, stdout_access_log::AccessLogFormat as StdoutFormat},
        },
    };

    use super::*;

    fn payload(log: &AccessLog) -> Vec<u8> {
        match build(log).unwrap().remove(0).config_type.unwrap() {
            ConfigType::TypedConfig(any) => any.value,
        }
    }

    #[test]
    fn the_ordered_messages_are_envoys() {
        let stdout = StdoutAccessLog::decode(payload(&AccessLog::Stdout).as_slice()).unwrap();
        let Some(StdoutFormat::LogFormat(stdout)) = stdout.access_log_format else {
            panic!("no format");
        };
        let file = AccessLog::File("/var/log/writ/access.json".into());
        let file = FileAccessLog::decode(payload(&file).as_slice()).unwrap();
        assert_eq!(file.path, "/var/log/writ/access.json");
        let Some(FileFormat::LogFormat(file)) = file.access_log_format else {
            panic!("no format");
        };
        for format in [stdout.format, file.format] {
            let Some(Format::JsonFormat(json)) = format else {
                panic!("no json");
            };
            assert_eq!(json.fields.len(), FIELDS.len());
        }
    }

    #[test]
    fn the_reason_is_read_where_it_is_kept() {
        let wanted = format!("%FILTER_STATE({REASON_FILTER_STATE}:PLAIN)%");
        assert!(FIELDS.contains(&("reason", wanted.as_str())));
    }
}
