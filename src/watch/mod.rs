//! The watch core: who watches what, and what each is told.
//!
//! One [`hub::Hub`] a shard, values in and values out. It imports `types` and nothing else of this crate.
//!
//! | file | noun |
//! | --- | --- |
//! | `hub` | the revision of the shard, its order of work, its inputs and outputs |
//! | `request` | creates, cancels, progress, and their answers |
//! | `group` | equal ranges with equal options: keys and members, kept once |
//! | `foresight` | creates that are about to come, and why they are looked at |
//! | `members` | the members of one group, in blocks of one size |
//! | `interval` | spans, found by a key |
//! | `fan_out` | one batch on its way to the synced |
//! | `behind`, `catch_up` | watchers that are behind; the passes that bring them forward |
//! | `gathered` | what a group is told of history, until it is sent |
//! | `shared` | encoded events that several streams hold |
//! | `refusal` | what was refused or ended, by reason |
//! | `removal` | what is gone, and the sweeps that take it out |
//! | `stream` | the watches and ids of one stream; all streams |
//! | `outbox`, `message` | what a stream has to send; responses to bytes |
//! | `arena` | rows by index, in chunks |
//!
//! # Costs
//!
//! In bytes, as `Hub::bytes` counts them; the tests hold the table true.
//!
//! | what | bytes |
//! | --- | --- |
//! | an idle watch stream | 72 |
//! | a watching | 8 in its group, 10 with what blocks of eight leave empty, and 4 to 5 in its stream's list |
//! | a group | 56, its key, and 6 to 12 in the table |
//! | a span | 20 more, in the tree |
//! | all of it for a watching on a key of its own, 32 bytes long | 112 at most |
//! | a watching with a chosen id, or in a reused row | 39 to 78 more |
//! | a watcher that is behind | 16, and 56 a group |
//! | a stream with something to send | its bytes, and a buffer that the next stream takes over |

mod behind;
mod catch_up;
mod fan_out;
pub mod foresight;
mod gathered;
mod group;
pub mod hub;
pub(crate) mod interval;
mod members;
mod message;
mod outbox;
pub mod refusal;
mod removal;
mod request;
mod shared;
mod stream;

#[cfg(test)]
mod amid;
#[cfg(test)]
mod script;
#[cfg(test)]
mod world;
