//! One read or write on the ring: split, continued after short results, registered where the buffer is.

use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::Arc;

use tokio_uring::buf::fixed::FixedBuf;
use tokio_uring::buf::{BoundedBuf, IoBuf, IoBufMut};
use tokio_uring::fs::File;
use volume::Buffer;

use super::Fixed;
use crate::pool::{BUFFER_SIZE, Shared, Slot};
use crate::request::Progress;

/// What the registry is told about a slot: its address. It never hands out memory by itself: [`Fixed::check_out`]
/// does, to whoever shows the slot's [`Buffer`].
pub(super) struct RegisteredSlot {
    shared: Arc<Shared>,
    index: usize,
}

impl RegisteredSlot {
    pub(super) fn new(shared: Arc<Shared>, index: usize) -> Self {
        assert!(index < shared.count(), "slot {index} is not in the pool");
        Self { shared, index }
    }
}

// SAFETY: the slot's address is stable and its memory mapped for as long as `shared` lives, which this value holds.
// All of it is initialised (zero-filled by the kernel when mapped).
unsafe impl IoBuf for RegisteredSlot {
    fn stable_ptr(&self) -> *const u8 {
        self.shared.slot(self.index).as_ptr()
    }
    fn bytes_init(&self) -> usize {
        BUFFER_SIZE
    }
    fn bytes_total(&self) -> usize {
        BUFFER_SIZE
    }
}

// SAFETY: as for `IoBuf`; tokio-uring writes through the pointer only in operations on a checked-out `FixedBuf`.
unsafe impl IoBufMut for RegisteredSlot {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.shared.slot(self.index).as_ptr()
    }
    unsafe fn set_init(&mut self, _: usize) {}
}

impl Fixed {
    /// The ring's handle for the slot behind `buffer`, if that slot is registered.
    fn check_out(&self, buffer: &Buffer) -> Option<FixedBuf> {
        let index = Slot::number(buffer, self.pool.shared())?;
        if index >= self.count {
            return None;
        }
        self.registry.check_out(index)
    }
}

/// A buffer lent to the kernel. It is taken back by [`Loan::settle`] once the kernel has answered; a loan that is
/// dropped otherwise (the runtime died under its task) leaks its memory, because the kernel may still write to it.
struct Loan {
    buffer: ManuallyDrop<Buffer>,
    span: Range<usize>,
}

impl Loan {
    fn new(buffer: Buffer, span: Range<usize>) -> Self {
        assert!(span.start <= span.end && span.end <= buffer.len(), "span {span:?} outside {buffer:?}");
        Self { buffer: ManuallyDrop::new(buffer), span }
    }

    /// Ends the loan: the kernel is done.
    fn settle(self) -> Buffer {
        ManuallyDrop::into_inner(self.buffer)
    }
}

// SAFETY: `Memory` promises a stable address and length for the life of the buffer, which the loan owns and, being a
// `ManuallyDrop`, never frees by itself. `new` checked that the span lies within the initialised bytes.
unsafe impl IoBuf for Loan {
    fn stable_ptr(&self) -> *const u8 {
        self.buffer[self.span.clone()].as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.span.len()
    }
    fn bytes_total(&self) -> usize {
        self.span.len()
    }
}

// SAFETY: as for `IoBuf`; the loan is the only owner of the buffer.
unsafe impl IoBufMut for Loan {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.buffer[self.span.clone()].as_mut_ptr()
    }
    unsafe fn set_init(&mut self, _: usize) {}
}

/// Fills `span` of the buffer from `at`.
pub(super) async fn read(
    file: &File,
    fixed: Option<&Fixed>,
    mut buffer: Buffer,
    span: Range<usize>,
    at: u64,
) -> (io::Result<()>, Buffer) {
    let mut progress = Progress::new(span, at);
    while let Some((piece, at)) = progress.next() {
        let result;
        (result, buffer) = match fixed.and_then(|fixed| fixed.check_out(&buffer)) {
            Some(slot) => {
                let loan = Loan::new(buffer, piece.clone());
                let (result, slot) = file.read_fixed_at(slot.slice(piece), at).await;
                drop(slot);
                (result, loan.settle())
            }
            None => {
                let (result, loan) = file.read_at(Loan::new(buffer, piece), at).await;
                (result, loan.settle())
            }
        };
        if let Err(error) = progress.advance(result, io::ErrorKind::UnexpectedEof) {
            return (Err(error), buffer);
        }
    }
    (Ok(()), buffer)
}

/// Writes `span` of the buffer at `at`.
pub(super) async fn write(
    file: &File,
    fixed: Option<&Fixed>,
    mut buffer: Buffer,
    span: Range<usize>,
    at: u64,
) -> (io::Result<()>, Buffer) {
    let mut progress = Progress::new(span, at);
    while let Some((piece, at)) = progress.next() {
        let result;
        (result, buffer) = match fixed.and_then(|fixed| fixed.check_out(&buffer)) {
            Some(slot) => {
                let loan = Loan::new(buffer, piece.clone());
                let (result, slot) = file.write_fixed_at(slot.slice(piece), at).await;
                drop(slot);
                (result, loan.settle())
            }
            None => {
                let (result, loan) = file.write_at(Loan::new(buffer, piece), at).submit().await;
                (result, loan.settle())
            }
        };
        if let Err(error) = progress.advance(result, io::ErrorKind::WriteZero) {
            return (Err(error), buffer);
        }
    }
    (Ok(()), buffer)
}
