//! An agent and an approver, as somebody else would write them: from the RFCs
//! and the pages, without the control plane's code.

mod agent;
mod answer;
mod approver;
mod key;
mod operator;

pub use agent::{Agent, Call, http_client, http_client_builder};
pub use answer::Answer;
pub use approver::{Approver, Verdict};
pub use key::{DpopKey, now_s, token_digest};
pub use operator::Operator;
