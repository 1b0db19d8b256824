use super::*;

#[test]
fn http2_is_known_by_its_whole_preface_and_http1_by_the_first_byte_that_differs() {
    for length in 0..PREFACE.len() {
        assert_eq!(protocol(&PREFACE[..length]), None, "{length}");
        let mut other = PREFACE[..=length].to_vec();
        other[length] ^= 1;
        assert_eq!(protocol(&other), Some(Protocol::Http1), "{length}");
    }
    assert_eq!(protocol(PREFACE), Some(Protocol::Http2));
    assert_eq!(protocol(&[&PREFACE[..], &[0; 100]].concat()), Some(Protocol::Http2));
    assert_eq!(protocol(b"GET /health HTTP/1.1\r\n"), Some(Protocol::Http1));
}

#[test]
fn the_meter_counts_frames_however_they_are_cut() {
    let mut bytes = vec![b'P'; 24];
    for (kind, length) in [(4_u8, 0_u32), (1, 300), (0, 5), (9, 70_000), (200, 1)] {
        bytes.extend_from_slice(&length.to_be_bytes()[1..]);
        bytes.extend_from_slice(&[kind, END_HEADERS, 0, 0, 0, 1]);
        bytes.resize(bytes.len() + length as usize, 7);
    }
    for step in [1, 2, 3, 7, 8, 9, 10, 1_000, 100_000] {
        let counters = Counters::default();
        let mut meter = Meter::default();
        for chunk in bytes.chunks(step) {
            let mut frames_left = u32::MAX;
            assert_eq!(meter.pass(chunk, &mut frames_left, &counters), chunk.len());
        }
        assert!(meter.is_at_boundary(), "step {step}");
        let seen: Vec<u64> = counters.frames.iter().map(|count| count.get()).collect();
        assert_eq!(seen, [1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 1], "step {step}");
    }
}

#[test]
fn the_meter_stops_behind_the_last_frame_that_is_allowed() {
    let mut bytes = vec![b'P'; 24];
    for _ in 0..5 {
        bytes.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0, 1, 7, 7]);
    }
    let mut frames_left = 3;
    let passed = Meter::default().pass(&bytes, &mut frames_left, &Counters::default());
    assert_eq!((passed, frames_left), (24 + 3 * 11, 0));
}
