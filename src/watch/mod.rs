//! The watch core: who watches what, and what each is told.

mod arena;
mod catch_up;
mod fan_out;
mod group;
pub mod hub;
mod interval;
mod message;
mod outbox;
mod stream;

#[cfg(test)]
mod random;
