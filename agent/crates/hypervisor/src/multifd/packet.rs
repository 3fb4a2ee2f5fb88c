//! The hello and the packets of a channel: layout, checks, fields. All integers are big-endian.

use bytes::Bytes;

use super::{HEADER, HELLO, MAX_PAGES, PAGE, Reason};

/// `MULTIFD_MAGIC`: how the hello and every packet begin.
pub(crate) const MAGIC: [u8; 4] = [0x11, 0x22, 0x33, 0x44];

/// `MULTIFD_VERSION`, after the magic.
const VERSION: [u8; 4] = [0, 0, 0, 1];

/// `MULTIFD_FLAG_SYNC`. The bits above it name a compression, 0 being none, and other kinds of packet.
const SYNC: u32 = 1;

const UUID: usize = 8;
const CHANNEL: usize = 24;

const FLAGS: usize = 8;
const ALLOCATED: usize = 12;
const NORMAL: usize = 16;
const PAYLOAD: usize = 20;
const NUMBER: usize = 24;
const ZERO: usize = 32;
const BLOCK: usize = 64;
const OFFSETS: usize = 320;
const _: () = assert!(OFFSETS + MAX_PAGES * 8 == HEADER, "the offsets are the rest of the header");

/// The field of `N` bytes at `at`, which lies within the fixed layout.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(field(bytes, at))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(field(bytes, at))
}

/// Whether these can be the first bytes of a hello or packet, as far as they go.
pub(super) fn may_begin(bytes: &[u8]) -> bool {
    bytes.iter().zip(MAGIC.iter().chain(&VERSION)).all(|(byte, expected)| byte == expected)
}

/// Checks of a packet what is there already of its magic, version and flags.
pub(super) fn check_beginning(bytes: &[u8]) -> Result<(), Reason> {
    if !may_begin(bytes) {
        return Err(Reason::Header);
    }
    if bytes.len() >= FLAGS + 4 {
        let flags = be32(bytes, FLAGS);
        if flags & !SYNC != 0 {
            return Err(Reason::Flags(flags));
        }
    }
    Ok(())
}

/// Checks a header of [`HEADER`] bytes whose beginning is right. Returns the bytes of the pages that follow it.
pub(super) fn check(header: &[u8]) -> Result<usize, Reason> {
    let (normal, zero, size) = (be32(header, NORMAL), be32(header, ZERO), be32(header, PAYLOAD));
    let wrong = Reason::Counts { normal, zero, size };
    let pages = pages(header).ok_or(wrong)?;
    let length = usize::try_from(normal).map_or(usize::MAX, |normal| normal.saturating_mul(PAGE));
    // Before 9.0 a SYNC repeats the size of the packet before it; no receiver reads the field without pages.
    let stale = normal == 0 && usize::try_from(size).is_ok_and(|size| size <= MAX_PAGES * PAGE);
    if usize::try_from(size) != Ok(length) && !stale {
        return Err(wrong);
    }
    if be32(header, ALLOCATED) as usize > MAX_PAGES {
        return Err(wrong);
    }
    if pages > 0 {
        let name = &header[BLOCK..OFFSETS];
        if name[0] == 0 || !name.contains(&0) {
            return Err(Reason::Block);
        }
    }
    for at in 0..pages {
        let offset = be64(header, OFFSETS + at * 8);
        if !offset.is_multiple_of(PAGE as u64) {
            return Err(Reason::Offset(offset));
        }
    }
    Ok(length)
}

/// Pages with content and zero pages together, if they fit into a packet.
fn pages(header: &[u8]) -> Option<usize> {
    let pages = be32(header, NORMAL).checked_add(be32(header, ZERO))?;
    usize::try_from(pages).ok().filter(|pages| *pages <= MAX_PAGES)
}

/// What a channel begins with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello(Bytes);

impl Hello {
    pub(super) fn new(bytes: Bytes) -> Self {
        debug_assert_eq!(bytes.len(), HELLO, "a hello is taken whole");
        Self(bytes)
    }

    /// All its [`HELLO`] bytes.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// UUID of the virtual machine; zeros if it has none. The destination's must be the same.
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        field(&self.0, UUID)
    }

    /// Number of the channel, from 0.
    #[must_use]
    pub fn channel(&self) -> u8 {
        self.0[CHANNEL]
    }
}

/// A checked packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    header: Bytes,
    pages: Bytes,
}

impl Packet {
    /// Of a header that [`check`] accepted, and as many bytes as it returned.
    pub(super) fn new(header: Bytes, pages: Bytes) -> Self {
        debug_assert_eq!(check(&header), Ok(pages.len()), "a packet is checked and whole");
        Self { header, pages }
    }

    /// All [`HEADER`] bytes of the header. What QEMU does not use of it holds remains of earlier packets.
    #[must_use]
    pub fn header(&self) -> &Bytes {
        &self.header
    }

    /// The contents of the normal pages, in the order of [`normal_offsets`](Self::normal_offsets), [`PAGE`] bytes
    /// each.
    #[must_use]
    pub fn pages(&self) -> &Bytes {
        &self.pages
    }

    /// Number of the packet. QEMU counts over all channels; a SYNC has the number of what came before it.
    #[must_use]
    pub fn packet_number(&self) -> u64 {
        be64(&self.header, NUMBER)
    }

    /// Whether the receiver stops after this packet until the main channel says that the round is over.
    #[must_use]
    pub fn is_sync(&self) -> bool {
        be32(&self.header, FLAGS) & SYNC != 0
    }

    /// Name of the RAM block that the pages belong to. Means nothing when there are none.
    #[must_use]
    pub fn block(&self) -> &[u8] {
        let name = &self.header[BLOCK..OFFSETS];
        name.split(|byte| *byte == 0).next().unwrap_or(name)
    }

    /// Offsets in the block of the pages with content: multiples of [`PAGE`].
    pub fn normal_offsets(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        self.offsets(0, self.pages.len() / PAGE)
    }

    /// Offsets in the block of the zero pages (QEMU 9.0 and newer; older ones send them on the main channel).
    pub fn zero_offsets(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        let normal = self.pages.len() / PAGE;
        self.offsets(normal, be32(&self.header, ZERO) as usize)
    }

    fn offsets(&self, first: usize, count: usize) -> impl ExactSizeIterator<Item = u64> + '_ {
        let range = OFFSETS + first * 8..OFFSETS + (first + count) * 8;
        self.header[range].chunks_exact(8).map(|offset| be64(offset, 0))
    }
}
