use super::*;
use crate::context::{Backend, Disk, Options};
use crate::request::Transfer;

#[test]
fn a_task_that_panics_fails_its_operation_and_no_other() {
    let Ok(disk) = Disk::start(&Options { backend: Backend::Uring, buffers: 2, registered: true }) else {
        let required = std::env::var("NOVAFERRY_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "uring"), "io_uring is required");
        println!("SKIP a_task_that_panics_fails_its_operation_and_no_other: no io_uring");
        return;
    };
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
