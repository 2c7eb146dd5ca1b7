//! What counts of a server that is followed, once it is asked again or had too little time.

use std::time::Duration;

use pgpool_recovery_core::error::{Error, Result};
use pgpool_recovery_core::host::upstream;
use pgpool_recovery_core::wire::protocol::upstream::{Answer, Told};

/// What is made of a question that failed where it was asked.
pub(super) fn untold(error: Error) -> Told {
    Told::of(Ok(Answer::Unknown(error.message)))
}

/// What counts of the server that is followed once it is asked again. A standby that does not answer this time is one still.
pub(super) fn after(before: Option<Told>, now: Told) -> Told {
    let (before, mut standbys) = before.map_or((None, Vec::new()), |told| (Some(told.answer), told.standbys));
    standbys.extend(now.standbys);
    standbys.sort();
    standbys.dedup();
    let answer = match now.answer {
        Ok(answer) => Ok(after_answer(before, answer)),
        Err(silence) => after_silence(before, silence),
    };
    Told { answer, standbys, silent: now.silent }
}

/// The same if it answers: that a question fails takes nothing back.
fn after_answer(before: Option<Result<Answer>>, now: Answer) -> Answer {
    match (before, now) {
        (Some(Ok(before @ (Answer::Primary(_) | Answer::Lives(_)))), Answer::Unknown(_)) => before,
        (_, now) => now,
    }
}

/// What counts of the server that is followed once it is silent: a refused connection tells that it has ended.
fn after_silence(before: Option<Result<Answer>>, silence: Error) -> Result<Answer> {
    match before {
        Some(Ok(answer)) if !upstream::is_refused(&silence) => Ok(answer),
        _ => Err(silence),
    }
}

/// Silence counts only if there was time enough to speak.
pub(super) fn unless_hurried(told: Told, full: Duration, time: Duration) -> Told {
    let answer = match told.answer {
        Err(error) if time < full && upstream::is_silence(&error) && !upstream::is_refused(&error) => {
            let time = time.as_secs_f32();
            Ok(Answer::Unknown(format!("no answer within {time:.1} s, and \"deadline\" leaves it no more")))
        }
        answer => answer,
    };
    Told { answer, ..told }
}

#[cfg(test)]
mod tests {
    use pgpool_recovery_core::error::Kind;

    use super::*;

    const ANSWER: Duration = Duration::from_secs(5);

    #[test]
    fn silence_counts_if_there_was_time_to_speak() {
        let silent = |detail: &str| Err(Error::new(Kind::Unreachable, "no answer").detail(detail));
        let second = Duration::from_secs(1);
        let unless_hurried = |answer, full, time| super::unless_hurried(Told::of(answer), full, time).answer;
        assert!(unless_hurried(silent("timeout expired"), ANSWER, ANSWER).is_err());
        assert!(unless_hurried(silent("Connection refused"), ANSWER, second).is_err(), "it is none");
        let hurried = unless_hurried(silent("timeout expired"), ANSWER, second);
        assert!(matches!(hurried, Ok(Answer::Unknown(why)) if why.contains("deadline")));
        assert_eq!(unless_hurried(Ok(Answer::Standby), ANSWER, second), Ok(Answer::Standby));
    }

    #[test]
    fn silence_does_not_take_back_that_a_primary_lives() {
        let silence = |detail: &str| Error::new(Kind::Unreachable, "no answer").detail(detail);
        let after = |before, detail| after_silence(before, silence(detail));
        assert!(after(None, "timeout expired").is_err());
        assert!(after(Some(Err(silence("timeout expired"))), "timeout expired").is_err());
        assert_eq!(after(Some(Ok(Answer::Standby)), "timeout expired"), Ok(Answer::Standby));
        let unknown = || Answer::Unknown("no psql".to_owned());
        for lives in [Answer::Primary(1), Answer::Lives("FATAL: no".to_owned()), unknown()] {
            assert_eq!(after(Some(Ok(lives.clone())), "timeout expired"), Ok(lives.clone()));
            assert!(after(Some(Ok(lives.clone())), "Connection refused").is_err());
            assert_eq!(after_answer(Some(Ok(lives.clone())), unknown()), lives);
            assert_eq!(after_answer(Some(Ok(lives)), Answer::Standby), Answer::Standby);
        }
        for before in [None, Some(Ok(Answer::Standby)), Some(Err(silence("timeout expired")))] {
            assert_eq!(after_answer(before, unknown()), unknown());
        }
    }
}
