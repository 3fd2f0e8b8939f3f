//! Server-sent events (WHATWG HTML §9.2): splits a stream that arrives in chunks into its events.

/// Splits a stream into events, byte for byte. The events do not depend on the chunks. Each byte is searched once, so
/// that neither a large event in small chunks nor many small events in a large chunk delay a worker.
#[derive(Debug, Default)]
pub struct EventSplitter {
    buffer: Vec<u8>,
    /// The offset up to which the buffer was searched without finding the end of an event.
    searched: usize,
}

impl EventSplitter {
    /// Adds `chunk`, and returns the events that are complete now, each with its blank line.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<Vec<u8>> {
        self.buffer.extend_from_slice(chunk);
        let (mut events, mut start) = (Vec::new(), 0);
        while let Some(end) = self.end_of_event() {
            events.extend(self.buffer.get(start..end).map(<[u8]>::to_vec));
            start = end;
            self.searched = end;
        }
        if start > 0 {
            self.buffer.drain(..start);
            self.searched = self.searched.saturating_sub(start);
        }
        events
    }

    /// The rest at the end of the stream: an event without its blank line.
    pub fn finish(self) -> Vec<u8> {
        self.buffer
    }

    /// The number of buffered bytes of an incomplete event.
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// The offset at which the next event ends: after two line endings in a row. A CR at the end of the buffer is not a
    /// line ending yet, because an LF may follow.
    fn end_of_event(&mut self) -> Option<usize> {
        loop {
            let rest = self.buffer.get(self.searched..)?;
            let length = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(rest.len());
            self.searched = self.searched.saturating_add(length);
            let after_line = self.searched.saturating_add(line_ending(&self.buffer, self.searched)?);
            match line_ending(&self.buffer, after_line)? {
                0 => self.searched = after_line,
                length => return Some(after_line.saturating_add(length)),
            }
        }
    }
}

/// The length of the line ending at `at`, zero if there is none. `None` if it depends on bytes that have not arrived.
fn line_ending(buffer: &[u8], at: usize) -> Option<usize> {
    match (buffer.get(at)?, buffer.get(at.saturating_add(1))) {
        (b'\n', _) => Some(1),
        (b'\r', Some(b'\n')) => Some(2),
        (b'\r', Some(_)) => Some(1),
        (b'\r', None) => None,
        _ => Some(0),
    }
}

/// Readers ignore it at the beginning of a stream.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The lines of an event, without their line endings.
fn lines(event: &[u8]) -> impl Iterator<Item = &[u8]> {
    let event = event.strip_prefix(BYTE_ORDER_MARK).unwrap_or(event);
    let mut rest = Some(event);
    std::iter::from_fn(move || {
        let text = rest?;
        match text.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
            None => {
                rest = None;
                Some(text)
            }
            Some(end) => {
                let (line, ending) = text.split_at_checked(end)?;
                rest = ending.strip_prefix(b"\r\n").or_else(|| ending.get(1..));
                Some(line)
            }
        }
    })
}

/// The value of a line of the field `data`. `None` for another line.
fn data_of(line: &[u8]) -> Option<&[u8]> {
    match line.strip_prefix(b"data")? {
        [] => Some(&[]),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

/// The data of an event: the values of its `data` lines, joined by line feeds. Empty if it has none.
pub fn data(event: &[u8]) -> Vec<u8> {
    let values: Vec<&[u8]> = lines(event).filter_map(data_of).collect();
    values.join(&b'\n')
}

/// The event with other data. Its other lines stay, each with a line feed.
pub fn with_data(event: &[u8], data: &str) -> Vec<u8> {
    let mut changed = Vec::with_capacity(event.len());
    // A byte order mark makes a `data` line an unknown field, except at the beginning of a stream. Without the lines
    // before it, such a line could come first and become data.
    let stays = |line: &&[u8]| !line.is_empty() && !line.starts_with(BYTE_ORDER_MARK) && data_of(line).is_none();
    for line in lines(event).filter(stays) {
        changed.extend_from_slice(line);
        changed.push(b'\n');
    }
    for line in data.split(['\r', '\n']) {
        changed.extend_from_slice(b"data: ");
        changed.extend_from_slice(line.as_bytes());
        changed.push(b'\n');
    }
    changed.push(b'\n');
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The events of a stream that arrives in chunks of these lengths, which repeat.
    fn split(stream: &[u8], lengths: &[usize]) -> Vec<Vec<u8>> {
        let (mut splitter, mut events, mut rest) = (EventSplitter::default(), Vec::new(), stream);
        let mut lengths = lengths.iter().cycle();
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at((*lengths.next().unwrap()).clamp(1, rest.len()));
            events.extend(splitter.push(chunk));
            rest = after;
        }
        events.push(splitter.finish());
        events
    }

    #[test]
    fn events_end_with_a_blank_line_in_any_spelling() {
        for (stream, events) in [
            ("data: a\n\ndata: b\n\n", vec!["data: a\n\n", "data: b\n\n", ""]),
            ("data: a\r\n\r\ndata: b\r\n\r\nx", vec!["data: a\r\n\r\n", "data: b\r\n\r\n", "x"]),
            ("data: a\r\rdata: b\r\rx", vec!["data: a\r\r", "data: b\r\r", "x"]),
            ("data: a\n\r\ndata: b\r\n\nx", vec!["data: a\n\r\n", "data: b\r\n\n", "x"]),
            (": ping\n\n\n\ndata: a\n", vec![": ping\n\n", "\n\n", "data: a\n"]),
        ] {
            for length in 1..stream.len() {
                assert_eq!(
                    split(stream.as_bytes(), &[length]),
                    events.iter().map(|event| event.as_bytes()).collect::<Vec<_>>(),
                    "{stream:?}"
                );
            }
        }
    }

    #[test]
    fn no_byte_is_searched_twice() {
        for line in ["data: a", "data: a\r\ndata: b"] {
            let mut splitter = EventSplitter::default();
            for _ in 0..10 {
                assert!(splitter.push(line.as_bytes()).is_empty());
                assert_eq!(splitter.searched, splitter.pending(), "{line:?}");
            }
            assert_eq!(splitter.push(b"\r\n\r\nid: 1").len(), 1);
            assert_eq!((splitter.searched, splitter.pending()), (5, 5));
        }
    }

    #[test]
    fn data_lines_are_joined() {
        for (event, expected) in [
            ("event: message\ndata: {\"a\":\ndata: 1}\nid: 7\n\n", "{\"a\":\n1}"),
            ("data:a\r\ndata:  b\r\n\r\n", "a\n b"),
            ("\u{feff}data: a\n\n", "a"),
            ("data\n\n", ""),
            ("data : a\ndatax: b\n: data: c\n\n", ""),
            ("id: 1\n\n", ""),
        ] {
            assert_eq!(data(event.as_bytes()), expected.as_bytes(), "{event:?}");
        }
    }

    #[test]
    fn other_lines_stay_if_the_data_changes() {
        let changed = with_data(b"event: message\r\nid: 7\r\ndata: old\r\n: c\r\n\r\n", "new\nlines");
        assert_eq!(String::from_utf8(changed).unwrap(), "event: message\nid: 7\n: c\ndata: new\ndata: lines\n\n");
        assert_eq!(with_data("\n\u{feff}data: hidden\ndata: old\n\n".as_bytes(), "new"), b"data: new\n\n");
    }

    proptest! {
        #[test]
        fn the_events_do_not_depend_on_the_chunks(stream in "(data: [ab]{0,3}|id:1|: c|\r|\n|\r\n|\n\n){0,24}", lengths in prop::collection::vec(1_usize..9, 1..6)) {
            let whole = split(stream.as_bytes(), &[stream.len().max(1)]);
            prop_assert_eq!(&split(stream.as_bytes(), &lengths), &whole);
            prop_assert_eq!(whole.concat(), stream.as_bytes());
        }
    }
}
