//! A guest of 512 bytes: it needs no kernel, is up in a second and dirties memory as fast as the machine goes.

use std::fmt;
use std::ops::Range;

/// Bytes of a boot sector.
pub const SECTOR: usize = 512;

/// Where the BIOS puts it.
const ORIGIN: u32 = 0x7c00;

/// Bytes of a page.
const PAGE: u32 = 4096;

/// Below lie the BIOS, its data, and the sector itself.
const LOWEST: u32 = 1 << 20;

/// Above may lie no memory any more.
const HIGHEST: u32 = 2 << 30;

/// A boot sector that increments the first byte of every page of a range, over and over. On the first serial port it
/// prints `A` when it starts and `B` after every 64 passes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BootSector {
    pages: Range<u32>,
}

/// The counters are not what any instant of the guest's life can show.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Torn {
    /// The pages, counted from the start of the range, whose counter differs from that of the page before.
    pub steps: Vec<usize>,
}

impl fmt::Display for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the counters change at pages {:?}; at most one step down by one can be", self.steps)
    }
}

impl std::error::Error for Torn {}

impl BootSector {
    /// Dirties the guest's memory from `start` up to `end`, in bytes; both a multiple of 4096, at least 1 MiB and at
    /// most 2 GiB. `None` if they are not, or nothing is between them.
    #[must_use]
    pub fn new(start: u32, end: u32) -> Option<Self> {
        let aligned = start.is_multiple_of(PAGE) && end.is_multiple_of(PAGE);
        (aligned && LOWEST <= start && start < end && end <= HIGHEST).then_some(Self { pages: start..end })
    }

    /// The memory that it dirties, in bytes from the start of the guest's memory.
    #[must_use]
    pub fn range(&self) -> Range<u32> {
        self.pages.clone()
    }

    /// The sector.
    #[must_use]
    pub fn bytes(&self) -> [u8; SECTOR] {
        let mut code = Code::default();
        // Real mode, as the BIOS starts it. Line A20 on (port 0x92), or every other MiB would be missing.
        code.add(&[0xfa]); //                               cli
        code.add(&[0xe4, 0x92]); //                         in al, 0x92
        code.add(&[0x0c, 0x02]); //                         or al, 2
        code.add(&[0xe6, 0x92]); //                         out 0x92, al
        code.add(&[0x31, 0xc0, 0x8e, 0xd8]); //             xor ax, ax; mov ds, ax
        code.add(&[0x0f, 0x01, 0x16]); //                   lgdt [descriptor]
        let descriptor = code.hole::<2>();
        code.add(&[0x0f, 0x20, 0xc0]); //                   mov eax, cr0
        code.add(&[0x0c, 0x01]); //                         or al, 1
        code.add(&[0x0f, 0x22, 0xc0]); //                   mov cr0, eax
        code.add(&[0xea]); //                               jmp 8:protected
        let protected = code.hole::<2>();
        code.add(&[0x08, 0x00]);
        // Protected mode, flat segments, no paging, no interrupts, no stack.
        code.fill(protected, code.address());
        code.add(&[0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8]); // mov ax, 16; mov ds, ax
        code.add(&[0x66, 0xba, 0xf8, 0x03]); //             mov dx, 0x3f8 (COM1)
        code.add(&[0xb0, b'A', 0xee]); //                   mov al, 'A'; out dx, al
        let again = code.address();
        code.add(&[0xb9, 64, 0, 0, 0]); //                  mov ecx, 64
        let pass = code.address();
        code.add(&[0xbf]); //                               mov edi, start
        code.add(&self.pages.start.to_le_bytes());
        let page = code.address();
        code.add(&[0xfe, 0x07]); //                         inc byte [edi]
        code.add(&[0x81, 0xc7]); //                         add edi, 4096
        code.add(&PAGE.to_le_bytes());
        code.add(&[0x81, 0xff]); //                         cmp edi, end
        code.add(&self.pages.end.to_le_bytes());
        code.jump(0x72, page); //                           jb page
        code.add(&[0x49]); //                               dec ecx
        code.jump(0x75, pass); //                           jnz pass
        code.add(&[0xb0, b'B', 0xee]); //                   mov al, 'B'; out dx, al
        code.jump(0xeb, again); //                          jmp again
        // The segments: none, code and data of 4 GiB from 0 (Intel SDM volume 3, 3.4.5), and where they are.
        let table = code.address();
        code.add(&0_u64.to_le_bytes());
        code.add(&0x00cf_9a00_0000_ffff_u64.to_le_bytes());
        code.add(&0x00cf_9200_0000_ffff_u64.to_le_bytes());
        code.fill(descriptor, code.address());
        code.add(&23_u16.to_le_bytes());
        code.add(&table.to_le_bytes());
        code.sector()
    }

    /// Whether the first bytes of the pages, as read from a guest that stands still, are those of an instant: the pages
    /// up to the one at work are one ahead of the rest. A page that was lost or is stale is behind.
    ///
    /// # Errors
    /// Where they are not.
    pub fn check(counters: &[u8]) -> Result<(), Torn> {
        let pairs = (1..).zip(counters.iter().zip(counters.iter().skip(1)));
        let steps: Vec<(usize, bool)> = pairs
            .filter(|(_, (before, after))| before != after)
            .map(|(page, (before, after))| (page, after.wrapping_add(1) == *before))
            .collect();
        match steps[..] {
            [] | [(_, true)] => Ok(()),
            _ => Err(Torn { steps: steps.into_iter().map(|(page, _)| page).collect() }),
        }
    }
}

/// Machine code that grows, with holes for addresses that are known later.
#[derive(Default)]
struct Code(Vec<u8>);

/// Where `N` bytes of an address are missing.
struct Hole<const N: usize>(usize);

impl Code {
    fn add(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// The address of what comes next. Short of [`SECTOR`] beyond the origin, or [`Code::sector`] panics.
    fn address(&self) -> u32 {
        (0_u32..).zip(&self.0).last().map_or(ORIGIN, |(at, _)| ORIGIN + at + 1)
    }

    fn hole<const N: usize>(&mut self) -> Hole<N> {
        let hole = Hole(self.0.len());
        self.add(&[0; N]);
        hole
    }

    fn fill<const N: usize>(&mut self, hole: Hole<N>, address: u32) {
        self.0[hole.0..hole.0 + N].copy_from_slice(&address.to_le_bytes()[..N]);
    }

    /// A jump of two bytes, back to `target`.
    fn jump(&mut self, opcode: u8, target: u32) {
        // The distance counts from behind the jump; as it is short, its lowest byte is its two's complement.
        let distance = target.wrapping_sub(self.address() + 2);
        self.add(&[opcode, distance.to_le_bytes()[0]]);
    }

    fn sector(self) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        sector[..self.0.len()].copy_from_slice(&self.0);
        sector[SECTOR - 2..].copy_from_slice(&[0x55, 0xaa]);
        sector
    }
}

#[cfg(test)]
mod tests {
    use super::{BootSector, Torn};

    #[test]
    fn the_range_is_checked() {
        assert!(BootSector::new(1 << 20, 100 << 20).is_some());
        for (start, end) in
            [(0, 4096), (1 << 20, 1 << 20), (1 << 20, (1 << 20) + 1), (2 << 20, 1 << 20), (1 << 20, 3 << 30)]
        {
            assert_eq!(BootSector::new(start, end), None);
        }
    }

    #[test]
    fn the_range_is_in_the_code() {
        let (one, other) =
            (BootSector::new(1 << 20, 100 << 20).unwrap(), BootSector::new(2 << 20, 101 << 20).unwrap());
        let (one, other) = (one.bytes(), other.bytes());
        assert_eq!(one[510..], [0x55, 0xaa]);
        assert_eq!(one.iter().zip(&other).filter(|(one, other)| one != other).count(), 2);
    }

    #[test]
    fn counters_of_an_instant() {
        for counters in [&[][..], &[7], &[7, 7, 7], &[8, 7, 7], &[8, 8, 7], &[0, 255]] {
            assert_eq!(BootSector::check(counters), Ok(()), "{counters:?}");
        }
        assert_eq!(BootSector::check(&[8, 7, 8, 7]), Err(Torn { steps: vec![1, 2, 3] }));
        assert_eq!(BootSector::check(&[7, 8]), Err(Torn { steps: vec![1] }));
        assert_eq!(BootSector::check(&[9, 7]), Err(Torn { steps: vec![1] }));
    }
}
