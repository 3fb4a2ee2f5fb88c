//! Kernel tests: real namespaces, real TUN devices, real sockets. They need the capabilities `root` and `netns`.
//!
//! What can be known is asserted: which packets are lost (the seed fixes it), lower bounds of times, upper bounds of
//! rates. What depends on the machine's load (how late a packet is) is printed.

#![expect(clippy::print_stdout, reason = "tests print their seeds, their figures and why they are skipped")]

mod accuracy;
mod command;
mod lifecycle;
mod support;
mod traffic;
