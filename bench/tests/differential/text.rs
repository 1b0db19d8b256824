//! Messages as text, both ways: requests are written by people in protobuf's text form, answers are printed in it.
//!
//! It knows field names from the descriptors alone, so an answer is compared field by field without a list of fields that
//! could forget one; fields the descriptors do not know are printed too. On top of protobuf's text form there is:
//! - `"v"*1000` is a string a thousand times, and strings beside each other are one: `"key" "\0"*3`;
//! - `field*5: ...` is the field five times, and `$i` in its strings is the turn, `0000` to `0004`.

use prost_reflect::{
    Cardinality, DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _, Value,
};
use protox::prost_reflect;

/// A parsed field: its name and what stands behind it.
#[derive(Clone, Debug)]
pub struct Field {
    pub name: String,
    pub node: Node,
}

#[derive(Clone, Debug)]
pub enum Node {
    Text(Vec<u8>),
    /// A number, `true`, `false` or the name of an enum value.
    Word(String),
    Block(Vec<Field>),
}

/// Reads a list of fields.
pub fn parse(text: &str) -> Result<Vec<Field>, String> {
    let mut parser = Parser { rest: text.as_bytes() };
    let fields = parser.fields()?;
    match parser.rest {
        [] => Ok(fields),
        rest => Err(format!("cannot read on at {:?}", String::from_utf8_lossy(rest))),
    }
}

struct Parser<'a> {
    rest: &'a [u8],
}

impl Parser<'_> {
    fn fields(&mut self) -> Result<Vec<Field>, String> {
        let mut fields = Vec::new();
        loop {
            let name = self.word();
            if name.is_empty() {
                return Ok(fields);
            }
            let times = if self.take(b'*') { Some(self.number()?) } else { None };
            let node = self.node(&name)?;
            match times {
                None => fields.push(Field { name, node }),
                Some(times) => fields.extend((0..times).map(|i| Field { name: name.clone(), node: node.turn(i) })),
            }
        }
    }

    fn node(&mut self, name: &str) -> Result<Node, String> {
        if self.take(b'{') {
            let fields = self.fields()?;
            return if self.take(b'}') { Ok(Node::Block(fields)) } else { Err(format!("{name}: no }} at its end")) };
        }
        if !self.take(b':') {
            return Err(format!("{name}: neither a : nor a {{ behind it"));
        }
        self.skip_space();
        if self.rest.first() == Some(&b'"') {
            return Ok(Node::Text(self.strings()?));
        }
        match self.word() {
            word if word.is_empty() => Err(format!("{name}: no value")),
            word => Ok(Node::Word(word)),
        }
    }

    fn strings(&mut self) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        while self.take(b'"') {
            let one = self.string()?;
            let times = if self.take(b'*') { self.number()? } else { 1 };
            bytes.extend(one.repeat(times));
        }
        Ok(bytes)
    }

    fn string(&mut self) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        loop {
            let byte = self.byte()?;
            match byte {
                b'"' => return Ok(bytes),
                b'\\' => bytes.push(self.escape()?),
                byte => bytes.push(byte),
            }
        }
    }

    fn escape(&mut self) -> Result<u8, String> {
        match self.byte()? {
            b'0' => Ok(0),
            b'n' => Ok(b'\n'),
            b'x' => {
                let digits = [self.byte()?, self.byte()?];
                let digits = std::str::from_utf8(&digits).map_err(|error| error.to_string())?;
                u8::from_str_radix(digits, 16).map_err(|error| format!("\\x{digits}: {error}"))
            }
            byte @ (b'\\' | b'"') => Ok(byte),
            byte => Err(format!("unknown escape \\{}", byte as char)),
        }
    }

    fn byte(&mut self) -> Result<u8, String> {
        let (&byte, rest) = self.rest.split_first().ok_or("the text ends inside a string")?;
        self.rest = rest;
        Ok(byte)
    }

    fn number(&mut self) -> Result<usize, String> {
        let word = self.word();
        word.parse().map_err(|_| format!("{word:?} is not a count"))
    }

    fn word(&mut self) -> String {
        self.skip_space();
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./".contains(byte);
        let length = self.rest.iter().take_while(|byte| is_word(byte)).count();
        let (word, rest) = self.rest.split_at(length);
        self.rest = rest;
        String::from_utf8_lossy(word).into_owned()
    }

    fn take(&mut self, byte: u8) -> bool {
        self.skip_space();
        let found = self.rest.first() == Some(&byte);
        self.rest = &self.rest[usize::from(found)..];
        found
    }

    fn skip_space(&mut self) {
        self.rest = self.rest.trim_ascii_start();
    }
}

impl Node {
    /// This node in turn `i` of a repetition.
    fn turn(&self, i: usize) -> Node {
        match self {
            Node::Text(bytes) => Node::Text(put_turn(bytes, i)),
            Node::Word(word) => Node::Word(word.clone()),
            Node::Block(fields) => {
                let turn = |field: &Field| Field { name: field.name.clone(), node: field.node.turn(i) };
                Node::Block(fields.iter().map(turn).collect())
            }
        }
    }
}

fn put_turn(bytes: &[u8], i: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, tail)) = rest.split_first() {
        if rest.starts_with(b"$i") {
            out.extend(format!("{i:04}").bytes());
            rest = &rest[2..];
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    out
}

/// Builds the message that the fields describe.
pub fn message(descriptor: &MessageDescriptor, fields: &[Field]) -> Result<DynamicMessage, String> {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in fields {
        let name = &field.name;
        let known = descriptor.get_field_by_name(name);
        let known = known.ok_or_else(|| format!("{} has no field {name}", descriptor.name()))?;
        let value = value(&known.kind(), &field.node).map_err(|error| format!("{name}: {error}"))?;
        if known.cardinality() == Cardinality::Repeated {
            match message.get_field_mut(&known) {
                Value::List(list) => list.push(value),
                _ => return Err(format!("{name}: maps are not used by this API")),
            }
        } else {
            message.set_field(&known, value);
        }
    }
    Ok(message)
}

fn value(kind: &Kind, node: &Node) -> Result<Value, String> {
    Ok(match (kind, node) {
        (Kind::Message(descriptor), Node::Block(fields)) => Value::Message(message(descriptor, fields)?),
        (Kind::Bytes, Node::Text(bytes)) => Value::Bytes(bytes.clone().into()),
        (Kind::String, Node::Text(bytes)) => Value::String(String::from_utf8_lossy(bytes).into_owned()),
        (Kind::Bool, Node::Word(word)) => Value::Bool(number(word)?),
        (Kind::Int64, Node::Word(word)) => Value::I64(number(word)?),
        (Kind::Uint64, Node::Word(word)) => Value::U64(number(word)?),
        (Kind::Enum(values), Node::Word(word)) => Value::EnumNumber(enum_number(values, word)?),
        _ => return Err("not a value of this field's type".to_owned()),
    })
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word:?} is not a value of this field's type"))
}

/// Unknown values are written as numbers.
fn enum_number(values: &EnumDescriptor, word: &str) -> Result<i32, String> {
    values.get_value_by_name(word).map_or_else(|| number(word), |value| Ok(value.number()))
}

/// A message as lines: one for each field, repeated fields one for each element.
pub fn lines(message: &DynamicMessage) -> Vec<String> {
    let mut lines = Vec::new();
    for (field, value) in message.fields() {
        match value {
            Value::List(list) => lines.extend(list.iter().map(|value| field_text(&field, value))),
            value => lines.push(field_text(&field, value)),
        }
    }
    lines.extend(message.unknown_fields().map(|field| format!("unknown field {}", field.number())));
    lines
}

/// A message on one line.
pub fn one_line(message: &DynamicMessage) -> String {
    match message.descriptor().name() {
        "ResponseHeader" => header_text(message),
        _ => {
            let lines = lines(message);
            let runs = lines.chunk_by(|a, b| a == b);
            runs.map(run_text).collect::<Vec<_>>().join(" ")
        }
    }
}

/// Fields that are alike, on one line.
fn run_text(run: &[String]) -> String {
    match run.len() {
        0..=3 => run.join(" "),
        times => format!("{} ({times} times)", run[0]),
    }
}

/// Cluster, member and term are the server's own, so they are not compared. Whether they are there at all is: inside a
/// transaction's answers they are not.
fn header_text(header: &DynamicMessage) -> String {
    let of_the_server = ["cluster_id", "member_id", "raft_term"];
    let set = of_the_server.into_iter().filter(|name| header.has_field_by_name(name)).count();
    let mut rest = header.clone();
    of_the_server.into_iter().for_each(|name| rest.clear_field_by_name(name));
    let ids = match set {
        0 => "",
        3 => "ids ",
        _ => "some ids ",
    };
    format!("{ids}{}", lines(&rest).join(" ")).trim_end().to_owned()
}

fn field_text(field: &FieldDescriptor, value: &Value) -> String {
    let name = field.name();
    match value {
        Value::Message(message) => match one_line(message) {
            text if text.is_empty() => format!("{name} {{}}"),
            text => format!("{name} {{ {text} }}"),
        },
        Value::Bytes(bytes) => format!("{name}: {}", bytes_text(bytes)),
        Value::String(text) => format!("{name}: {}", bytes_text(text.as_bytes())),
        Value::EnumNumber(number) => format!("{name}: {}", enum_text(field, *number)),
        Value::Bool(value) => format!("{name}: {value}"),
        Value::I64(value) => format!("{name}: {value}"),
        Value::U64(value) => format!("{name}: {value}"),
        Value::I32(value) => format!("{name}: {value}"),
        Value::U32(value) => format!("{name}: {value}"),
        other => format!("{name}: {other:?}"),
    }
}

fn enum_text(field: &FieldDescriptor, number: i32) -> String {
    let kind = field.kind();
    let known = kind.as_enum().and_then(|values| values.get_value(number));
    known.map_or_else(|| number.to_string(), |value| value.name().to_owned())
}

/// Bytes that repeat more often than this are written as a count.
const RUN_MIN: usize = 24;

fn bytes_text(bytes: &[u8]) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut plain = String::new();
    for run in bytes.chunk_by(|a, b| a == b) {
        let escaped = escape(run[0]);
        if run.len() < RUN_MIN {
            plain.push_str(&escaped.repeat(run.len()));
        } else {
            if !plain.is_empty() {
                parts.push(format!("\"{}\"", std::mem::take(&mut plain)));
            }
            parts.push(format!("\"{escaped}\"*{}", run.len()));
        }
    }
    if !plain.is_empty() || parts.is_empty() {
        parts.push(format!("\"{plain}\""));
    }
    parts.join(" ")
}

fn escape(byte: u8) -> String {
    match byte {
        0 => "\\0".to_owned(),
        b'\\' | b'"' => format!("\\{}", byte as char),
        b' '..=b'~' => (byte as char).to_string(),
        byte => format!("\\x{byte:02x}"),
    }
}

/// Lines that only count on are folded: the first group of them stands, behind it how often it follows and what the
/// numbers of each of its lines grow by from group to group. Nothing is lost by it.
pub fn fold(lines: Vec<String>) -> Vec<String> {
    let mut folded = Vec::new();
    let mut rest = &lines[..];
    while !rest.is_empty() {
        let runs = (1..=PERIOD_MAX).map(|period| (period, counting_run(rest, period)));
        let long = runs.filter(|(period, (groups, _))| *groups >= FOLD_MIN && period * groups >= 2 * FOLD_MIN);
        // The shortest group wins among equals.
        let best = long.rev().max_by_key(|(period, (groups, _))| period * groups);
        let (period, groups) = best.as_ref().map_or((1, 1), |(period, (groups, _))| (*period, *groups));
        folded.extend_from_slice(&rest[..period]);
        if let Some((_, (_, steps))) = best {
            let what = if period == 1 { "like it".to_owned() } else { format!("of these {period} lines") };
            folded.push(format!("  and {} more {what}, the numbers by {steps}", groups - 1).trim_end().to_owned());
        }
        rest = &rest[period * groups..];
    }
    folded
}

/// Fewer groups than this are easier to read as they are.
const FOLD_MIN: usize = 8;
/// How many lines a group may have: the answer to a watch create has four, a blank one included.
const PERIOD_MAX: usize = 6;

/// How often the first `period` lines follow each other with the same steps, and these steps.
fn counting_run(lines: &[String], period: usize) -> (usize, String) {
    if lines.len() < 2 * period {
        return (1, String::new());
    }
    let mut groups = lines.len() / period;
    let mut all_steps = Vec::new();
    for offset in 0..period {
        let (first, second) = (Counted::of(&lines[offset]), Counted::of(&lines[offset + period]));
        if first.texts != second.texts {
            return (1, String::new());
        }
        let steps: Vec<i64> = first.numbers.iter().zip(&second.numbers).map(|(a, b)| b.0 - a.0).collect();
        let column = lines[offset..].iter().step_by(period).enumerate();
        groups = groups.min(column.take_while(|(turn, line)| first.after(*turn, &steps) == **line).count());
        all_steps.push(steps.iter().map(|step| format!("{step:+}")).collect::<Vec<_>>().join(" "));
    }
    (groups, all_steps.join(" / "))
}

/// A line cut into its numbers, with the width of each, and the texts around them.
struct Counted<'a> {
    texts: Vec<&'a str>,
    numbers: Vec<(i64, usize)>,
}

impl Counted<'_> {
    fn of(line: &str) -> Counted<'_> {
        let (mut texts, mut numbers) = (Vec::new(), Vec::new());
        let (mut text_start, mut at) = (0, 0);
        while let Some(start) = line[at..].find(|c: char| c.is_ascii_digit()).map(|offset| at + offset) {
            at = line[start..].find(|c: char| !c.is_ascii_digit()).map_or(line.len(), |offset| start + offset);
            if let Ok(number) = line[start..at].parse() {
                texts.push(&line[text_start..start]);
                numbers.push((number, at - start));
                text_start = at;
            }
        }
        texts.push(&line[text_start..]);
        Counted { texts, numbers }
    }

    /// The line that stands `turns` below this one. Only a leading zero keeps a width.
    fn after(&self, turns: usize, steps: &[i64]) -> String {
        let turns = i64::try_from(turns).expect("a file has fewer lines");
        let mut line = self.texts[0].to_owned();
        for ((&(number, width), step), text) in self.numbers.iter().zip(steps).zip(&self.texts[1..]) {
            let next = step.saturating_mul(turns).saturating_add(number);
            line.push_str(&format!("{next:0width$}{text}"));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(fields: &[Field]) -> String {
        format!("{fields:?}")
    }

    #[test]
    fn a_repeated_field_counts_its_turns() {
        let long = text_of(&parse(r#"a: "x0000" a: "x0001" b { c: 5 }"#).unwrap());
        assert_eq!(text_of(&parse(r#"a*2: "x$i" b { c: 5 }"#).unwrap()), long);
    }

    #[test]
    fn text_that_is_no_field_list_is_refused() {
        for text in ["a", "a:", "a {", "a: \"x", "a: \"\\q\"", "a: 1 }", "a*x: 1"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_are_printed_as_they_are_written() {
        let all: Vec<u8> = (0..=255).chain([7; 100]).collect();
        let Ok([Field { node: Node::Text(back), .. }]) =
            parse(&format!("a: {}", bytes_text(&all))).map(|fields| <[Field; 1]>::try_from(fields).unwrap())
        else {
            panic!("not one text")
        };
        assert_eq!(back, all);
    }

    #[test]
    fn lines_that_count_on_are_folded_and_others_are_not() {
        let mut lines: Vec<String> = (5..25).map(|i| format!("k{i:04} at {}", 2 * i)).collect();
        lines.push("k0025 at 51".to_owned());
        let folded = fold(lines);
        assert_eq!(folded, ["k0005 at 10", "  and 19 more like it, the numbers by +1 +2", "k0025 at 51"]);
        let pairs = (0..9).flat_map(|i| [format!("a {i}"), format!("b {}", 9 - i)]).collect();
        assert_eq!(fold(pairs), ["a 0", "b 9", "  and 8 more of these 2 lines, the numbers by +1 / -1"]);
        let few: Vec<String> = (0..5).map(|i| format!("a {i}")).collect();
        assert_eq!(fold(few.clone()), few);
    }
}
