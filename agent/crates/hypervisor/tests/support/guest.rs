//! The smallest guest that can prove that its memory moved intact: a boot sector.
//!
//! It goes to protected mode, prints `A` on the serial port, and then adds one to the first byte of every page of its
//! region, over and over, each time after a check that the byte holds the number of the pass: a page that is lost or
//! old stops it with an `X`. Every 16,384 passes it prints `B`.

use std::path::{Path, PathBuf};

/// A guest's size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) memory_mib: u32,
    /// Pages that it keeps writing, from 1 MiB on.
    pub(crate) pages: u32,
}

const CODE: &[&[u8]] = &[
    // 16 bits, at 0x7c00
    b"\xfa",                 // cli
    b"\x31\xc0\x8e\xd8",     // xor ax, ax; mov ds, ax
    b"\x0f\x01\x16\x70\x7c", // lgdt [0x7c70]
    b"\x0f\x20\xc0",         // mov eax, cr0
    b"\x0c\x01",             // or al, 1
    b"\x0f\x22\xc0",         // mov cr0, eax
    b"\xea\x17\x7c\x08\x00", // jmp 8:0x7c17
    // 32 bits, at 0x7c17
    b"\x66\xb8\x10\x00\x8e\xd8", // mov ax, 16; mov ds, ax
    b"\x66\xba\xf8\x03",         // mov dx, 0x3f8
    b"\xb0A\xee",                // mov al, 'A'; out dx, al
    b"\x31\xdb",                 // xor ebx, ebx: the number of the pass
    b"\xbf\x00\x00\x10\x00",     // pass: mov edi, 0x100000
    b"\x38\x1f\x75\x1d",         // page: cmp [edi], bl; jne bad
    b"\xfe\x07",                 // inc byte [edi]
    b"\x81\xc7\x00\x10\x00\x00", // add edi, 4096
    b"\x81\xff",                 // cmp edi, END
];
const AFTER_END: &[&[u8]] = &[
    b"\x72\xec",                     // jb page
    b"\x43",                         // inc ebx
    b"\x66\xf7\xc3\xff\x3f\x75\xdf", // test bx, 0x3fff; jnz pass
    b"\xb0B\xee\xeb\xda",            // mov al, 'B'; out dx, al; jmp pass
    b"\xb0X\xee",                    // bad: mov al, 'X'; out dx, al
    b"\xf4\xeb\xfd",                 // stop: hlt; jmp stop
    // The descriptor table at 0x7c58: nothing, code, data; both over all 4 GiB
    &[0x90; 6],
    &[0; 8],
    b"\xff\xff\x00\x00\x00\x9a\xcf\x00",
    b"\xff\xff\x00\x00\x00\x92\xcf\x00",
    b"\x17\x00\x58\x7c\x00\x00", // 0x7c70: its length less one, its address
];

/// Writes the boot disk of a guest of that size.
pub(crate) fn boot_disk(folder: &Path, size: Size) -> PathBuf {
    let end = 0x10_0000 + size.pages * 4096;
    let mut sector = CODE.concat();
    sector.extend(end.to_le_bytes());
    sector.extend(AFTER_END.concat());
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    let path = folder.join("boot.raw");
    std::fs::write(&path, sector).expect("write the boot disk");
    path
}
