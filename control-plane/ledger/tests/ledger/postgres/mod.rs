//! What is true of the store on PostgreSQL alone, on a real server.

mod epochs;
mod failover;
mod faults;
mod proxy;
mod replicas;
pub mod server;
mod settings;
