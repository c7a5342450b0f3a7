//! A server that may lose what it acknowledged is not used.

use std::time::Duration;

use ledger::{
    Ledger,
    model::*,
    postgres::{PostgresError, PostgresOptions},
};

use super::server::{Database, Server};
use crate::{
    common::*,
    rig::{Home, Rig},
};

async fn refused(rig: &Rig, database: &Database) -> Option<&'static str> {
    match Ledger::open_postgres(rig.postgres_options(database)).await {
        Ok(_) => None,
        Err(PostgresError::Setting { name, todo, .. }) => {
            assert!(!todo.is_empty());
            Some(name)
        }
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_loses_commits_is_refused_by_name() {
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let Home::Postgres(database) = &rig.home else {
        panic!("no database");
    };
    for (value, wanted) in [
        ("off", Some("synchronous_commit")),
        ("local", Some("synchronous_commit")),
        ("remote_write", None),
        ("remote_apply", None),
        ("on", None),
    ] {
        let set = format!(
            "ALTER DATABASE {} SET synchronous_commit = {value}",
            database.name
        );
        database.run(&set).await;
        assert_eq!(refused(&rig, database).await, wanted, "{value}");
    }
    let read_only = "SET default_transaction_read_only =";
    let name = &database.name;
    database
        .run(&format!("ALTER DATABASE {name} {read_only} on"))
        .await;
    assert_eq!(refused(&rig, database).await, Some("transaction_read_only"));
    let mut conn = database.connect().await;
    let back = format!("BEGIN READ WRITE; ALTER DATABASE {name} {read_only} off; COMMIT");
    sqlx::raw_sql(sqlx::AssertSqlSafe(back))
        .execute(&mut conn)
        .await
        .unwrap();
    assert_eq!(refused(&rig, database).await, None);
    let promised = PostgresOptions {
        replicated: true,
        ..rig.postgres_options(database)
    };
    let Err(error) = Ledger::open_postgres(promised).await else {
        panic!("there is no standby");
    };
    assert!(
        error.to_string().contains("synchronous_standby_names"),
        "{error}"
    );
    let few = PostgresOptions {
        connections: 4,
        ..rig.postgres_options(database)
    };
    let error = Ledger::open_postgres(few).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, PostgresError::Number { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn settings_that_are_changed_while_it_is_used_stop_it() {
    let rig = Rig::files();
    let Some(server) = Server::start(&[]) else {
        return;
    };
    let database = server.database().await;
    let options = rig.postgres_options(&database);
    let (ledger, _) = Ledger::open_postgres(options).await.unwrap();
    for (setting, n) in [("fsync", 0), ("full_page_writes", 1)] {
        ledger.commit(issue(token(&format!("{n}")))).await.unwrap();
        let change = format!("ALTER SYSTEM SET {setting} = off");
        database.run(&change).await;
        database.run("SELECT pg_reload_conf()").await;
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        assert_eq!(refused(&rig, &database).await, Some(setting));
        let spent = ledger
            .commit(allow(&format!("{n}"), &format!("{n}"), None))
            .await;
        assert_eq!(spent, Err(Refused::Unavailable), "{setting}");
        assert_eq!(
            ledger.token(&hash(&format!("{n}"))).await,
            Err(Refused::Unavailable)
        );
        database.run(&format!("ALTER SYSTEM RESET {setting}")).await;
        database.run("SELECT pg_reload_conf()").await;
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        let spent = ledger
            .commit(allow(&format!("{n}"), &format!("{n}"), None))
            .await;
        assert!(spent.is_ok(), "{setting}: {spent:?}");
    }
}
