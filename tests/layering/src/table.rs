//! The layers of `ARCHITECTURE.md` as data, for the crates that exist.
//!
//! Where the code needs an edge that is not here, either the code or the design is wrong: settle which, then change
//! this table and `ARCHITECTURE.md` together.

/// What every package name starts with; the tables leave it out.
pub const PREFIX: &str = "novaferry-";

/// One of our crates and what it may use of ours.
#[derive(Debug)]
pub struct Row {
    /// Package name without [`PREFIX`].
    pub name: &'static str,
    /// Folder from the root.
    pub folder: &'static str,
    /// What it may depend on.
    pub uses: Uses,
    /// No runtime, sockets, files, clock or global randomness.
    pub pure: bool,
}

/// What a crate may use of ours.
#[derive(Debug)]
pub enum Uses {
    /// These and no other.
    Only(&'static [&'static str]),
    /// Anything, heavy dependencies included: tests and benches, which nothing shipped depends on.
    Anything,
}

/// Our crates, lowest layer first.
pub const CRATES: &[Row] = &[
    Row { name: "volume", folder: "agent/crates/volume", uses: Uses::Only(&[]), pure: true },
    Row { name: "wire", folder: "agent/crates/wire", uses: Uses::Only(&["volume"]), pure: true },
    Row { name: "reduce", folder: "agent/crates/reduce", uses: Uses::Only(&["volume"]), pure: true },
    Row { name: "disk", folder: "agent/crates/disk", uses: Uses::Only(&["volume"]), pure: false },
    Row {
        name: "session",
        folder: "agent/crates/session",
        uses: Uses::Only(&["volume", "wire"]),
        pure: true,
    },
    // Frames carry the ids and buffers of `volume`.
    Row { name: "tunnel", folder: "agent/crates/tunnel", uses: Uses::Only(&["volume", "wire"]), pure: false },
    Row { name: "hypervisor", folder: "agent/crates/hypervisor", uses: Uses::Only(&["volume"]), pure: false },
    Row { name: "trace", folder: "agent/crates/trace", uses: Uses::Only(&[]), pure: false },
    Row { name: "pki", folder: "agent/crates/pki", uses: Uses::Only(&[]), pure: false },
    // Both ends of a move and the coordinator read them.
    Row { name: "receipt", folder: "agent/crates/receipt", uses: Uses::Only(&[]), pure: true },
    Row {
        name: "engine",
        folder: "agent/crates/engine",
        uses: Uses::Only(&[
            "volume",
            "wire",
            "reduce",
            "disk",
            "session",
            "tunnel",
            "hypervisor",
            "receipt",
            "trace",
        ]),
        pure: false,
    },
    Row { name: "control-api", folder: "agent/crates/control-api", uses: Uses::Only(&[]), pure: false },
    // The binary chooses the backends and endpoints (`disk`, `tunnel`), names volumes, and hands them to the engine.
    // `wire` and `reduce` are here for what the engine's options and refusals are made of (mode, format, level, fail
    // code). It has no business with `session`.
    Row {
        name: "agent",
        folder: "agent",
        uses: Uses::Only(&[
            "volume",
            "wire",
            "reduce",
            "disk",
            "tunnel",
            "hypervisor",
            "pki",
            "control-api",
            "engine",
            "trace",
        ]),
        pure: false,
    },
    Row { name: "model", folder: "coordinator/crates/model", uses: Uses::Only(&[]), pure: true },
    Row { name: "planner", folder: "coordinator/crates/planner", uses: Uses::Only(&["model"]), pure: true },
    Row { name: "store", folder: "coordinator/crates/store", uses: Uses::Only(&["model"]), pure: false },
    Row {
        name: "service",
        folder: "coordinator/crates/service",
        uses: Uses::Only(&["model", "planner", "store", "pki", "control-api", "receipt", "trace"]),
        pure: false,
    },
    Row {
        name: "coordinator",
        folder: "coordinator",
        uses: Uses::Only(&["model", "service", "trace"]),
        pure: false,
    },
    Row { name: "bench", folder: "bench", uses: Uses::Anything, pure: false },
    Row { name: "e2e", folder: "tests/e2e", uses: Uses::Anything, pure: false },
    Row { name: "fuzz", folder: "tests/fuzz", uses: Uses::Anything, pure: false },
    Row { name: "guest", folder: "tests/guest", uses: Uses::Anything, pure: false },
    Row { name: "guest-init", folder: "tests/guest/init", uses: Uses::Only(&[]), pure: false },
    Row { name: "hosts", folder: "tests/hosts", uses: Uses::Anything, pure: false },
    Row { name: "layering", folder: "tests/layering", uses: Uses::Anything, pure: false },
    Row { name: "link", folder: "tests/link", uses: Uses::Anything, pure: false },
    Row { name: "postgres", folder: "tests/postgres", uses: Uses::Anything, pure: false },
    Row { name: "simulation", folder: "tests/simulation", uses: Uses::Anything, pure: false },
];

/// A dependency that few crates may name, so that it can be replaced or upgraded in one place.
#[derive(Debug)]
pub struct Heavy {
    /// Package name.
    pub package: &'static str,
    /// Our crates that may name it.
    pub owners: &'static [Owner],
}

/// A crate that may name a heavy dependency.
#[derive(Debug)]
pub struct Owner {
    /// Package name without [`PREFIX`].
    pub name: &'static str,
    /// Only for its own tests.
    pub tests_only: bool,
    /// Why it is an owner beside the one in the design; empty for that one.
    pub reason: &'static str,
}

const fn owner(name: &'static str) -> Owner {
    Owner { name, tests_only: false, reason: "" }
}

const fn also(name: &'static str, reason: &'static str) -> Owner {
    Owner { name, tests_only: false, reason }
}

const fn in_tests(name: &'static str, reason: &'static str) -> Owner {
    Owner { name, tests_only: true, reason }
}

/// The quarantine. Crates that may use anything are exempt.
pub const HEAVY: &[Heavy] = &[
    Heavy {
        package: "tokio",
        owners: &[
            owner("engine"),
            owner("disk"),
            owner("tunnel"),
            owner("hypervisor"),
            owner("agent"),
            owner("control-api"),
            owner("store"),
            owner("service"),
            owner("coordinator"),
            owner("coordinator"),
        ],
    },
    Heavy { package: "tokio-uring", owners: &[owner("disk")] },
    Heavy { package: "libc", owners: &[owner("disk")] },
    Heavy { package: "quinn", owners: &[owner("tunnel")] },
    Heavy { package: "quinn-proto", owners: &[owner("tunnel")] },
    Heavy {
        package: "rustls",
        owners: &[
            owner("tunnel"),
            also("control-api", "dials the coordinator"),
            also("coordinator", "chooses the provider of its HTTP client"),
            also("service", "is dialled"),
        ],
    },
    Heavy {
        package: "tokio-rustls",
        owners: &[
            owner("tunnel"),
            also("control-api", "dials the coordinator"),
            also("service", "is dialled"),
        ],
    },
    Heavy {
        package: "tonic",
        owners: &[
            owner("control-api"),
            also("service", "serves what it defines"),
            also("agent", "the line's streams"),
        ],
    },
    Heavy {
        package: "prost",
        owners: &[owner("control-api"), in_tests("agent", "reads what it exports over OTLP")],
    },
    Heavy { package: "sqlx", owners: &[owner("store")] },
    Heavy { package: "axum", owners: &[owner("service")] },
    Heavy { package: "tar", owners: &[owner("coordinator"), owner("service")] },
    Heavy { package: "governor", owners: &[owner("service")] },
    Heavy { package: "jsonwebtoken", owners: &[owner("service")] },
    Heavy { package: "jsonschema", owners: &[in_tests("service", "checks answers against the description")] },
    Heavy {
        package: "utoipa",
        owners: &[
            owner("service"),
            also("model", "its values describe themselves, if its feature `schema` is on"),
        ],
    },
    Heavy { package: "socket2", owners: &[owner("tunnel")] },
    Heavy {
        package: "rustls-webpki",
        owners: &[
            owner("tunnel"),
            also("pki", "checks a certificate offline by the same code that checks peers inside TLS"),
        ],
    },
    Heavy {
        package: "rustls-pki-types",
        owners: &[
            owner("tunnel"),
            also("pki", "the argument types of rustls-webpki"),
            also("control-api", "keys and chains of its TLS"),
            also("service", "keys and chains of its TLS"),
            in_tests("engine", "keys for its tunnels"),
            in_tests("coordinator", "finds the key that a browser is shown"),
        ],
    },
    Heavy {
        package: "x509-parser",
        owners: &[
            owner("pki"),
            also("tunnel", "reads a peer's name from its certificate"),
            in_tests("coordinator", "finds the key that a browser is shown"),
        ],
    },
    Heavy {
        package: "rcgen",
        owners: &[
            owner("pki"),
            in_tests("tunnel", "certificates that no issuer of ours would sign"),
            in_tests("engine", "certificates for its tunnels"),
        ],
    },
    Heavy { package: "blake3", owners: &[owner("reduce")] },
    Heavy { package: "zstd", owners: &[owner("reduce")] },
    Heavy {
        package: "xxhash-rust",
        owners: &[
            owner("reduce"),
            also(
                "engine",
                "checksums of journal records, which guard against torn tails and not against an adversary; short \
                 file names",
            ),
        ],
    },
    Heavy { package: "clap", owners: &[owner("agent"), owner("coordinator")] },
    Heavy { package: "serde-saphyr", owners: &[owner("coordinator")] },
    Heavy { package: "toml_edit", owners: &[owner("coordinator")] },
    Heavy { package: "hyper", owners: &[owner("agent")] },
    Heavy {
        package: "ureq",
        owners: &[owner("trace"), owner("coordinator"), also("service", "posts to webhooks")],
    },
    Heavy { package: "opentelemetry", owners: &[owner("trace")] },
    Heavy { package: "tun-rs", owners: &[] },
    Heavy { package: "cargo_metadata", owners: &[] },
];

/// What a pure crate must not reach, however indirectly: runtimes, sockets, files, clocks, global randomness.
pub const IMPURE: &[&str] = &[
    "async-io",
    "async-std",
    "chrono",
    "fastrand",
    "getrandom",
    "io-uring",
    "mio",
    "polling",
    "quinn",
    "quinn-udp",
    "rand",
    "rustix",
    "rustls",
    "smol",
    "socket2",
    "tempfile",
    "time",
    "tokio",
    "tokio-uring",
    "uuid",
];

/// The only crate that may contain `unsafe` code.
pub const UNSAFE: &str = "disk";

/// The row of a package, by its full name.
#[must_use]
pub fn row(package: &str) -> Option<&'static Row> {
    let name = package.strip_prefix(PREFIX)?;
    CRATES.iter().find(|row| row.name == name)
}
