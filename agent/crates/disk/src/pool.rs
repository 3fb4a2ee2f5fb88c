//! A bounded pool of page-aligned buffers in one mapping.
//!
//! The mapping is anonymous and untouched until a buffer is used, so an idle process does not hold it resident.
//! Free buffers are handed out last in, first out: a process that needs few touches few.
//!
//! Ownership: slot `i` of the slab belongs to exactly one [`Slot`] value, to the free list, or (leaked on purpose) to
//! a kernel that never answered. Nobody else makes references into it.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags};
use tokio::sync::Semaphore;
use volume::{Buffer, BufferPool, Io, Kind, Memory, Op, VolumeError};

/// Bytes in each buffer of the pool: the size at which one operation costs least per byte (measured: 0.03-0.04
/// CPU-s/GB at 256 KiB against 0.55 at 4 KiB), and a quarter of an extent.
pub const BUFFER_SIZE: usize = 256 << 10;

/// Most buffers in one pool: the kernel registers at most `UIO_MAXIOV` with one ring.
pub const MAX_BUFFERS: usize = 1024;

/// A bounded set of buffers, shared by all sessions of a process. Cloning gives another handle to the same set.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    slab: Slab,
    free: Mutex<Vec<usize>>,
    /// As many permits as there are entries in `free`; waiters queue here in order of arrival.
    permits: Semaphore,
    count: usize,
}

impl Pool {
    /// A pool of `buffers` buffers of [`BUFFER_SIZE`].
    ///
    /// # Errors
    /// [`Kind::Invalid`] when `buffers` is 0 or above [`MAX_BUFFERS`]; [`Kind::NoSpace`] when the address space is
    /// exhausted.
    pub fn new(buffers: usize) -> Result<Self, VolumeError> {
        let what = || format!("a pool of {buffers} buffers");
        if buffers == 0 || buffers > MAX_BUFFERS {
            return Err(VolumeError::new(Kind::Invalid, Op::Create, what())
                .advise(format!("choose between 1 and {MAX_BUFFERS} buffers")));
        }
        let slab = Slab::map(buffers * BUFFER_SIZE).map_err(|error| {
            VolumeError::new(Kind::NoSpace, Op::Create, what())
                .caused_by(std::io::Error::from(error))
                .advise("configure fewer buffers or raise the memory limit of the process")
        })?;
        // Reversed, so that the lowest slots (the ones sure to be registered) are popped first.
        let free = Mutex::new((0..buffers).rev().collect());
        let shared = Shared { slab, free, permits: Semaphore::new(buffers), count: buffers };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Buffers in the pool.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.count
    }

    /// Buffers that are free now.
    #[must_use]
    pub fn available(&self) -> usize {
        self.shared.permits.available_permits()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Gives the memory of all free buffers back to the system; their content is lost and reads as zeros.
    pub(crate) fn trim(&self) {
        let mut taken = Vec::new();
        while let Some(slot) = self.shared.try_take() {
            taken.push(slot);
        }
        for slot in &taken {
            self.shared.slab.release(slot.index);
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} of {} free)", self.available(), self.capacity())
    }
}

impl BufferPool for Pool {
    fn buffer_size(&self) -> usize {
        BUFFER_SIZE
    }

    fn acquire(&self) -> Io<'_, Buffer> {
        Box::pin(async move {
            let permit = self.shared.permits.acquire().await.expect("the semaphore is never closed");
            permit.forget();
            Buffer::new(Box::new(self.shared.pop()))
        })
    }

    fn try_acquire(&self) -> Option<Buffer> {
        self.shared.try_take().map(|slot| Buffer::new(Box::new(slot)))
    }
}

impl Shared {
    fn list(&self) -> MutexGuard<'_, Vec<usize>> {
        // A panic while the list is held cannot leave it half-changed: push and pop are the only uses.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_take(self: &Arc<Self>) -> Option<Slot> {
        self.permits.try_acquire().ok()?.forget();
        Some(self.pop())
    }

    /// Takes a free slot; the caller holds the permit for it.
    fn pop(self: &Arc<Self>) -> Slot {
        let index = self.list().pop().expect("one free slot per permit");
        Slot { shared: Arc::clone(self), index }
    }

    /// Slots in the slab.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Where slot `index` starts.
    pub(crate) fn slot(&self, index: usize) -> NonNull<u8> {
        self.slab.slot(index)
    }
}

/// The one handle to a slot's memory. Dropping it puts the slot back.
pub(crate) struct Slot {
    shared: Arc<Shared>,
    index: usize,
}

impl Slot {
    /// The slot's number, if `buffer` is a slot of the pool `shared`.
    pub(crate) fn number(buffer: &Buffer, shared: &Arc<Shared>) -> Option<usize> {
        let memory: &dyn Any = buffer.memory();
        let slot = memory.downcast_ref::<Self>()?;
        Arc::ptr_eq(&slot.shared, shared).then_some(slot.index)
    }
}

impl Memory for Slot {
    fn bytes(&self) -> &[u8] {
        // SAFETY: the slot lies inside the mapping, which `shared` keeps alive, and was zero-filled by the kernel.
        // This value is its only owner and is borrowed for as long as the slice lives.
        unsafe { std::slice::from_raw_parts(self.shared.slot(self.index).as_ptr(), BUFFER_SIZE) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; the exclusive borrow of the only owner makes the slice exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.shared.slot(self.index).as_ptr(), BUFFER_SIZE) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.list().push(self.index);
        self.shared.permits.add_permits(1);
    }
}

/// One private anonymous mapping.
struct Slab {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the slab is only an address range; who may touch which part of it is decided by `Slot`, one owner a slot.
unsafe impl Send for Slab {}
// SAFETY: as for Send; all methods work on the address, not on the content, save `release`, which the caller guards.
unsafe impl Sync for Slab {}

impl Slab {
    fn map(len: usize) -> rustix::io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, flags)?
        };
        let base = NonNull::new(base.cast()).expect("mmap without MAP_FIXED never returns the null page");
        Ok(Self { base, len })
    }

    fn slot(&self, index: usize) -> NonNull<u8> {
        assert!(index < self.len / BUFFER_SIZE, "slot {index} lies outside the slab");
        // SAFETY: the assertion keeps the result inside the mapping.
        unsafe { self.base.add(index * BUFFER_SIZE) }
    }

    /// Gives a slot's pages back; they read as zeros afterwards. The caller owns the slot.
    fn release(&self, index: usize) {
        // SAFETY: the range is one slot, which the caller owns, so that no reference into it exists. Private anonymous
        // memory reads as zeros after MADV_DONTNEED: still initialised.
        let result = unsafe {
            rustix::mm::madvise(self.slot(index).as_ptr().cast(), BUFFER_SIZE, Advice::LinuxDontNeed)
        };
        if let Err(error) = result {
            tracing::debug!(%error, "an idle buffer stays resident");
        }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        // SAFETY: every slot, and the ring's registration, hold the `Shared` that owns this slab, so none is left.
        let result = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(result.is_ok(), "unmapping our own mapping succeeds");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_bounded_and_buffers_come_back() {
        let pool = Pool::new(3).unwrap();
        let held: Vec<_> = std::iter::from_fn(|| pool.try_acquire()).collect();
        assert_eq!((held.len(), pool.available()), (3, 0));
        for buffer in &held {
            assert_eq!(buffer.as_ptr().align_offset(4096), 0);
            assert_eq!(buffer.len(), BUFFER_SIZE);
            assert!(Slot::number(buffer, pool.shared()).is_some());
        }
        drop(held);
        assert_eq!(pool.available(), 3);
        assert_eq!(Slot::number(&Buffer::heap(1), pool.shared()), None);
        let other = Pool::new(1).unwrap();
        assert_eq!(Slot::number(&other.try_acquire().unwrap(), pool.shared()), None);
    }

    #[test]
    fn waiters_are_served_in_order() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let pool = Pool::new(1).unwrap();
            let held = pool.acquire().await;
            let order = Arc::new(Mutex::new(Vec::new()));
            let mut tasks = Vec::new();
            for name in 0..4 {
                let (pool, order) = (pool.clone(), Arc::clone(&order));
                tasks.push(tokio::spawn(async move {
                    let _buffer = pool.acquire().await;
                    order.lock().unwrap().push(name);
                }));
            }
            tokio::task::yield_now().await;
            assert!(pool.try_acquire().is_none());
            drop(held);
            for task in tasks {
                task.await.unwrap();
            }
            assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3]);
        });
    }

    #[test]
    fn trimming_spares_buffers_in_use_and_zeroes_the_rest() {
        let pool = Pool::new(2).unwrap();
        let mut held = pool.try_acquire().unwrap();
        let mut spare = pool.try_acquire().unwrap();
        held.fill(1);
        spare.fill(2);
        drop(spare);
        pool.trim();
        assert!(held.iter().all(|b| *b == 1));
        assert_eq!(pool.available(), 1);
        assert!(pool.try_acquire().unwrap().iter().all(|b| *b == 0));
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        for buffers in [0, MAX_BUFFERS + 1] {
            assert_eq!(Pool::new(buffers).unwrap_err().kind(), Kind::Invalid);
        }
    }
}
