//! Owned buffers: a buffer goes into an I/O call by value and comes back with the result, also on failure.
//!
//! In-flight operations own their memory; dropping a future never frees memory that the kernel can still write to.
//! A [`Buffer`] hides what backs it ([`Memory`]): a registered io_uring slab of `disk`, or an aligned heap block.
//! Dropping it gives the memory back to its pool.

use std::any::Any;
use std::fmt;

use crate::traits::Io;

/// What backs a [`Buffer`]: memory that one owner at a time may read and write.
///
/// Implementations return themselves to their pool in `Drop`. The slice must keep its address and length for the
/// life of the value.
pub trait Memory: Any + Send + Sync {
    /// All of the memory.
    fn bytes(&self) -> &[u8];
    /// All of the memory, to write.
    fn bytes_mut(&mut self) -> &mut [u8];
}

/// An owned, page-aligned buffer. `len` is what is in use; `capacity` what it could hold.
///
/// `Clone` is deliberately not derived: a copy of a quarter megabyte must be seen in the code.
pub struct Buffer {
    memory: Box<dyn Memory>,
    len: usize,
}

impl Buffer {
    /// Wraps memory; the whole of it is in use.
    #[must_use]
    pub fn new(memory: Box<dyn Memory>) -> Self {
        let len = memory.bytes().len();
        Self { memory, len }
    }

    /// A zeroed, page-aligned heap buffer of `len` bytes, bounded by nothing: for tests, tails and small work.
    #[must_use]
    pub fn heap(len: usize) -> Self {
        Self::new(Box::new(Heap::new(len)))
    }

    /// Bytes in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when no byte is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes it can hold.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.memory.bytes().len()
    }

    /// Changes how much is in use. Bytes beyond the old length hold whatever was there before.
    ///
    /// # Panics
    /// When `len` exceeds the capacity: the caller's arithmetic is wrong.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "buffer of {} bytes asked to hold {len}", self.capacity());
        self.len = len;
    }

    /// The memory behind the buffer, so that the backend that made it can recognise it.
    #[must_use]
    pub fn memory(&self) -> &dyn Memory {
        &*self.memory
    }

    /// The memory behind the buffer, to write.
    pub fn memory_mut(&mut self) -> &mut dyn Memory {
        &mut *self.memory
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory.bytes()[..self.len]
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory.bytes_mut()[..self.len]
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.as_ref()
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.as_mut()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} of {})", self.len, self.capacity())
    }
}

/// Hands out buffers of one size and bounds how many exist: this is where back-pressure starts.
pub trait BufferPool: Send + Sync {
    /// Capacity of each buffer in bytes: a multiple of [`crate::CHUNK`].
    fn buffer_size(&self) -> usize;
    /// Waits until a buffer is free. Its `len` is its capacity; its content is arbitrary.
    fn acquire(&self) -> Io<'_, Buffer>;
    /// A buffer if one is free now.
    fn try_acquire(&self) -> Option<Buffer>;
}

/// Alignment that satisfies O_DIRECT on 512-byte and on 4 KiB-sector devices alike.
const ALIGN: usize = 4096;

/// Page-aligned heap memory without `unsafe`: over-allocate and start at the first aligned byte. A `Vec` that is
/// never resized does not move its heap block, so the offset stays right.
struct Heap {
    block: Vec<u8>,
    start: usize,
    len: usize,
}

impl Heap {
    fn new(len: usize) -> Self {
        let block = vec![0; len + ALIGN];
        let start = block.as_ptr().align_offset(ALIGN);
        Self { block, start, len }
    }
}

impl Memory for Heap {
    fn bytes(&self) -> &[u8] {
        &self.block[self.start..self.start + self.len]
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.block[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heap_buffers_are_aligned_and_zeroed() {
        for len in [0, 1, 511, 4096, 262_144] {
            let buffer = Buffer::heap(len);
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().align_offset(ALIGN), 0);
            assert!(buffer.iter().all(|b| *b == 0));
        }
    }

    #[test]
    #[should_panic(expected = "asked to hold")]
    fn a_length_past_the_capacity_is_a_bug() {
        Buffer::heap(16).set_len(17);
    }
}
