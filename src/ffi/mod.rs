//! The C ABI: a thin skin over [`Client`](crate::Client) and [`Stream`](crate::Stream).
//!
//! `api` holds every exported function, in the order of the header, which is made of it; `session`
//! the state behind a `gptalk_client`; `outcome` the keys of `gptalk_get`.
//!
//! Panics are contained, exceptions of the host pass: the work is done inside `catch_unwind`, a
//! step at a time; the callback is called between two steps, outside of it, with no lock held.

#![allow(unsafe_code, non_camel_case_types)]

mod api;
mod outcome;
mod session;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Does some work; a panic in it comes back as `None`.
fn contained<T>(work: impl FnOnce() -> T) -> Option<T> {
    // What a panic leaves behind is dropped by the callers, and locks recover from poison.
    catch_unwind(AssertUnwindSafe(work)).ok()
}
