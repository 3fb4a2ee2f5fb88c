use super::*;
use crate::context::{Backend, Disk, Options};
use crate::request::Transfer;

fn uring(test: &str, buffers: usize) -> Option<Disk> {
    match Disk::start(&Options { backend: Backend::Uring, buffers, registered: true }) {
        Ok(disk) => Some(disk),
        Err(error) => {
            let required = std::env::var("NOVAFERRY_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == "uring"), "{test}: {error}");
            println!("SKIP {test}: {error}");
            None
        }
    }
}

#[test]
fn a_task_that_panics_fails_its_operation_and_no_other() {
    let Some(disk) = uring("a_task_that_panics_fails_its_operation_and_no_other", 2) else { return };
    let mut file = tempfile::tempfile().unwrap();
    io::Write::write_all(&mut file, &[7; 4096]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let lane = disk.lane(file);
        for (span, works) in [(0..4096, true), (0..usize::MAX, false), (0..4096, true)] {
            let (access, lane) = (Access::Read, Arc::clone(&lane));
            let buffer = volume::BufferPool::acquire(disk.pool()).await;
            let fill = |reply| Transfer { access, lane, at: 0, buffer, span, guard: None, reply };
            let (result, buffer) = disk.transfer(fill).await;
            assert_eq!(result.is_ok(), works, "{result:?}");
            assert_eq!(buffer.len(), crate::BUFFER_SIZE);
            if works {
                assert!(buffer[..4096].iter().all(|byte| *byte == 7));
            }
        }
        assert_eq!(disk.registered_buffers(), 2);
    });
    disk.shutdown().unwrap();
}

/// Buffers are unpinned and emptied when the last volume goes, and pinned again for the next one: a slot whose pages
/// were given back under a registration would show the next reader zeros.
#[test]
fn buffers_are_registered_only_while_a_volume_is_open() {
    let Some(disk) = uring("buffers_are_registered_only_while_a_volume_is_open", 256) else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![9; 1 << 20]).unwrap();
    let path = file.into_temp_path();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for _ in 0..3 {
        assert_eq!(disk.registered_buffers(), 0);
        let source = disk.open_source(&path, crate::SourceOptions::default()).unwrap();
        runtime.block_on(async {
            for at in 0..4 {
                let buffer = volume::BufferPool::acquire(disk.pool()).await;
                let at = volume::ByteOffset(at * crate::BUFFER_SIZE as u64);
                let (result, mut buffer) = volume::Source::read_at(&source, at, buffer).await;
                result.unwrap();
                assert!(buffer.iter().all(|byte| *byte == 9));
                buffer.fill(1);
            }
        });
        println!("{} of 256 buffers registered", disk.registered_buffers());
        assert!(disk.registered_buffers() > 0);
        drop(source);
        while disk.registered_buffers() > 0 {
            std::thread::yield_now();
        }
    }
    disk.shutdown().unwrap();
}

/// Makes a system call fail with EPERM for this thread and those it starts, like the seccomp profiles of containers.
fn deny(call: i64) {
    let statement =
        |code: u32, k: u32, jt, jf| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k };
    let mut program = [
        // The call's number is the first word of `struct seccomp_data`.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, u32::try_from(call).unwrap(), 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs(), 0, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let filter =
        libc::sock_fprog { len: u16::try_from(program.len()).unwrap(), filter: program.as_mut_ptr() };
    // SAFETY: PR_SET_NO_NEW_PRIVS takes integers; PR_SET_SECCOMP reads the program, which outlives the call.
    let results = unsafe {
        [
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter),
        ]
    };
    assert_eq!(results, [0, 0], "{}", io::Error::last_os_error());
}

/// Blocked at once, or only when it is used: either way the plain backend takes over, or the demand fails.
#[test]
fn a_blocked_io_uring_gives_way_to_the_plain_backend() {
    for call in [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter] {
        let check = move || {
            deny(call);
            let options = |backend| Options { backend, buffers: 2, registered: true };
            let error = Disk::start(&options(Backend::Uring)).unwrap_err();
            assert_eq!(error.kind(), volume::Kind::Unsupported, "{error}");
            assert!(error.advice().unwrap().contains("seccomp"));
            let disk = Disk::start(&options(Backend::Auto)).unwrap();
            assert_eq!(disk.backend(), Backend::Plain);
            let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
            let sink =
                disk.open_sink(&path, crate::SinkOptions { size: Some(volume::ByteLen(5000)), fresh: false });
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(volume::conformance::check_sink(&sink.unwrap(), 1));
            disk.shutdown().unwrap();
        };
        std::thread::spawn(check).join().unwrap();
    }
}
