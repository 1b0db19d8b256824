//! Watchers that hang: they watch everything and read nothing, and fall behind by every revision that others write.
//!
//! Three servers, each fresh: without a stuck watcher, with one, and with very many. Each is filled until the watchers
//! are as far behind as asked; as many come back with the first revision and hang as well; then it is measured: puts a second in a closed loop, and the tail of puts on a schedule.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Sizes;
use super::call::{deaf_streams, ended_among};
use super::witness::Witness;
use crate::fault::Result;
use crate::link::Windows;
use crate::load::{Load, Shape};
use crate::report::{Course, Measured};
use crate::screen::count;
use crate::server::{Program, Server};
use crate::work::Work;

/// What a watcher takes before it hangs.
const WINDOWS: Windows = Windows { stream_bytes: 4 << 10, connection_bytes: 1 << 20 };
const LOAD: Work = Work::Put { keys: 10_000, key_bytes: 32, value_bytes: 64 };
const LOOK: Duration = Duration::from_millis(500);

/// What a server that fails has in the table.
const RATE: &str = "puts a second, 1,000 clients";

/// A server that does not bear its stuck watchers has no figures beside them, and the table says why: that is what was
/// asked, and what it did beside fewer of them stands.
pub async fn stuck(program: &Program, sizes: Sizes) -> Result<Vec<Measured>> {
    let (mut all, mut control) = (Vec::new(), None);
    let mut counts = vec![0, 1, sizes.stuck];
    // A small run has one stuck watcher where there are many.
    counts.dedup();
    for stuck in counts {
        let mut server = program.start().await?;
        let mut measured = Measured::default();
        let outcome = match beside(&mut server, sizes, stuck, &mut measured).await {
            Err(fault) => Err(server.explain(fault)),
            // What a server measured that has died meanwhile is no figure.
            Ok(rate) => server.stop().await.map(|()| rate),
        };
        match outcome {
            Ok(rate) if stuck == 0 => control = Some(rate),
            Ok(rate) => {
                if let Some(control) = control {
                    measured.headline(&scene(stuck), "puts a second, % of those without", rate / control * 100.0);
                }
            }
            Err(fault) => {
                if measured.figures.is_empty() {
                    measured.add(&scene(stuck), RATE, 0.0);
                }
                measured.void = Some(fault.to_string());
            }
        }
        all.push(measured);
    }
    Ok(all)
}

fn scene(stuck: u32) -> String {
    format!("{} stuck watchers of everything", count(u64::from(stuck)))
}

/// Gives the puts a second.
async fn beside(server: &mut Server, sizes: Sizes, stuck: u32, measured: &mut Measured) -> Result<f64> {
    let scene = scene(stuck);
    let mut deaf = deaf_streams(&server.endpoint, stuck, WINDOWS, 0).await?;
    let name = format!("{} stuck", count(u64::from(stuck)));
    let mut course = Course { picture: "Puts a second beside stuck watchers", name, points: Vec::new() };
    let load = launch(&server.endpoint, sizes.threads)?;
    let begun = Instant::now();
    while load.completed() < u64::from(sizes.behind) && begun.elapsed() < sizes.behind_at_most {
        look(&load, &mut course, begun).await;
        server.check_alive()?;
    }
    // Their like come back with the first revision, as after a restart, and hang again.
    let coming = (Instant::now(), load.completed());
    let mut back = deaf_streams(&server.endpoint, stuck, WINDOWS, 1).await?;
    while coming.0.elapsed() < sizes.window {
        look(&load, &mut course, begun).await;
    }
    let behind = load.completed();
    let coming_rate = (behind - coming.1) as f64 / coming.0.elapsed().as_secs_f64();
    load.open_window();
    let window = Instant::now();
    while window.elapsed() < sizes.window {
        look(&load, &mut course, begun).await;
    }
    let puts = load.completed() - behind;
    let rate = puts as f64 / window.elapsed().as_secs_f64();
    measured.courses.push(course);
    let latency = load.finish().await?;
    measured.add(&scene, "revisions behind when measured", behind as f64);
    measured.add(&scene, RATE, rate);
    measured.closed_loop_tail(&scene, &latency);
    measured.add(&scene, "puts a second while they come back", coming_rate);
    measured.add(&scene, "VmRSS, MB", server.process.memory()?.resident as f64 / 1e6);

    let witness = Witness::start(&server.endpoint, sizes.puts_a_second)?;
    tokio::time::sleep(sizes.window).await;
    let tails = witness.finish().await?;
    tails[0].add(measured, &scene);
    measured.void = ended_among("stuck streams", deaf.iter_mut().chain(&mut back));
    drop((deaf, back));
    Ok(rate)
}

fn launch(endpoint: &Arc<str>, threads: u32) -> Result<Load> {
    Load::launch(endpoint, Shape { connections: 100, clients: 1_000, threads }, LOAD)
}

/// Waits a little and notes how many puts were done meanwhile.
async fn look(load: &Load, course: &mut Course, begun: Instant) {
    let (from, before) = (Instant::now(), load.completed());
    tokio::time::sleep(LOOK).await;
    let rate = (load.completed() - before) as f64 / from.elapsed().as_secs_f64();
    course.points.push((begun.elapsed().as_secs_f64(), rate));
}
