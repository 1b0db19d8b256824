//! Lists of numbers as a command line names them, such as `1-9,12`.

/// The numbers that such a list names, in order, each once. `number` reads one of them; `what` says what they number.
///
/// # Errors
/// What `number` says of a word, and that the list names nothing.
pub fn numbers(text: &str, what: &str, number: impl Fn(&str) -> Result<usize, String>) -> Result<Vec<usize>, String> {
    let mut numbers = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(number(first.trim())?..=number(last.trim())?);
    }
    numbers.sort_unstable();
    numbers.dedup();
    if numbers.is_empty() { Err(format!("{text:?} names no {what}")) } else { Ok(numbers) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_named_one_by_one_and_from_to() {
        let read = |text: &str| numbers(text, "house", |word| word.parse().map_err(|_| format!("no house: {word:?}")));
        assert_eq!(read("6,2-4, 3 ,0"), Ok(vec![0, 2, 3, 4, 6]));
        assert_eq!(read("1 - 2"), Ok(vec![1, 2]));
        assert_eq!(read("3-2"), Err("\"3-2\" names no house".to_owned()));
        for (text, word) in [("", ""), ("a", "a"), ("0,", ""), ("1-", ""), ("-1", ""), ("1-2-3", "2-3")] {
            assert_eq!(read(text), Err(format!("no house: {word:?}")), "{text:?}");
        }
    }
}
