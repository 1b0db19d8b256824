//! Many calls at once, and never more than there are lanes: each lane begins a call when its last is answered.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::task::JoinSet;

use crate::caller::Caller;
use crate::fault::Result;
use crate::tasks;

/// One call for each number below `calls`, begun in their order, over so many lanes of each caller. The first fault ends
/// them all. Must be called inside a `LocalSet`.
pub async fn in_lanes<F, W>(callers: &[Caller], lanes_each: u32, calls: u32, begin: F) -> Result<()>
where
    F: FnMut(Caller, u32) -> W + 'static,
    W: Future<Output = Result<()>> + 'static,
{
    let (next, begin) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(begin)));
    // Each lane is a task, so that an answer wakes one of them and not all.
    let mut lanes = JoinSet::new();
    for caller in callers {
        for _ in 0..lanes_each {
            let (caller, next, begin) = (caller.clone(), next.clone(), begin.clone());
            lanes.spawn_local(async move {
                while next.get() < calls {
                    let call = next.replace(next.get() + 1);
                    let work = (*begin.borrow_mut())(caller.clone(), call);
                    work.await?;
                }
                Ok(())
            });
        }
    }
    tasks::all(&mut lanes).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Fault;
    use crate::link::Windows;
    use tokio::task::LocalSet;

    /// Ten calls over three lanes, of which the one of this number fails: what was begun, and how many went on at once.
    fn ten_calls(fails: Option<u32>) -> (Result<()>, Vec<u32>, usize) {
        // Nobody answers here; a connection is open all the same.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap().to_string().into();
        let runtime = crate::threads::event_loop().unwrap();
        let begun = Rc::new(RefCell::new(Vec::new()));
        let (under_way, most) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let (noted, seen) = (begun.clone(), most.clone());
        let outcome = LocalSet::new().block_on(&runtime, async move {
            let caller = Caller::connect(&endpoint, Windows::SMALL).await.unwrap();
            let begin = move |_, call| {
                noted.borrow_mut().push(call);
                under_way.set(under_way.get() + 1);
                seen.set(under_way.get().max(seen.get()));
                let under_way = under_way.clone();
                async move {
                    tokio::task::yield_now().await;
                    under_way.set(under_way.get() - 1);
                    if fails == Some(call) { Err(Fault::Refused("no".to_owned())) } else { Ok(()) }
                }
            };
            in_lanes(&[caller], 3, 10, begin).await
        });
        (outcome, begun.take(), most.get())
    }

    #[test]
    fn calls_begin_in_their_order_and_never_more_at_once_than_there_are_lanes() {
        let (outcome, begun, most) = ten_calls(None);
        assert!(outcome.is_ok());
        assert_eq!((begun, most), ((0..10).collect(), 3));
    }

    #[test]
    fn a_fault_ends_all_lanes() {
        let (outcome, begun, _) = ten_calls(Some(2));
        assert_eq!(outcome.unwrap_err().to_string(), "no");
        assert!(begun.len() < 10, "{begun:?}");
    }
}
