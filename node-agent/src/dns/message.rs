//! The 12 bytes in front of every DNS message: all that a forwarder has to know.

const HEADER: usize = 12;
const ANSWER: u8 = 0b1000_0000;
const RECURSION_AVAILABLE: u8 = 0b1000_0000;
const SERVER_FAILURE: u8 = 2;

/// A whole header that asks rather than answers.
pub(super) fn is_question(message: &[u8]) -> bool {
    message.len() >= HEADER && message[2] & ANSWER == 0
}

/// A whole header that answers this question's number.
pub(super) fn answers(message: &[u8], question: &[u8]) -> bool {
    message.len() >= HEADER && message[2] & ANSWER != 0 && message[..2] == question[..2]
}

/// "Nobody could say": the question itself, marked as a failed answer.
pub(super) fn failure(question: &[u8]) -> Vec<u8> {
    let mut answer = question.to_vec();
    if let [_, _, flags, more_flags, ..] = answer.as_mut_slice() {
        *flags |= ANSWER;
        *more_flags = RECURSION_AVAILABLE | SERVER_FAILURE;
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message__should_tell_questions_from_answers_and_from_noise() {
        let question = [7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3];
        assert!(is_question(&question) && !is_question(&question[..11]) && !is_question(&[]));
        let failed = failure(&question);
        assert!(!is_question(&failed) && answers(&failed, &question));
        assert_eq!(failed, [7, 9, 0x81, 0x82, 0, 1, 0, 0, 0, 0, 0, 0, 3]);
        let mut other = failed;
        other[1] = 8;
        assert!(!answers(&other, &question));
    }
}
