//! Frames that tell more of the target's pages than whether they differ: for a run that leaves out what WAL proves equal, and
//! proves that proof.

use pgdata::wal::Lsn;

use super::data::{Present, Reader};
use crate::compare::digest::{DigestKey, PAGE};
use crate::compare::page_facts::PageFacts;
use crate::error::Result;
use crate::manifest::plan::Range;

/// Sender: as [`super::data::ASK`], and tell what each page says of itself. Answer: [`EXAMINED`].
pub const EXAMINE: u8 = 0x27;
/// Receiver: the answer to one [`EXAMINE`]: for each of its ranges what a [`super::data::DIGESTS`] has, then for each of its
/// pages the LSN (u64) and the digest of the page without what PostgreSQL does not log (16 bytes), and 1 if all of its rows are visible.
pub const EXAMINED: u8 = 0x32;

/// Appends one range's answer to the body of an [`EXAMINED`]; `content` is what is there of the range.
pub fn encode_examined(length: u32, digests: &[u8], content: &[u8], key: &DigestKey, out: &mut Vec<u8>) {
    Present::encode(length, digests, out);
    for page in content.chunks(PAGE) {
        let facts = PageFacts::of(page, key);
        out.extend_from_slice(&facts.lsn.0.to_le_bytes());
        out.extend_from_slice(&facts.logged);
        out.push(u8::from(facts.is_all_visible));
    }
}

/// What the target has of one range, with what its pages say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Examined<'a> {
    /// How much is there, and the digests of its pages.
    pub present: Present<'a>,
    facts: &'a [u8],
}

impl<'a> Examined<'a> {
    /// Decodes the body of an [`EXAMINED`], which answers all ranges of a batch.
    pub fn decode_all(asked: &[Range], body: &'a [u8]) -> Result<Vec<Self>> {
        let mut rest = body;
        let decode = |range| {
            let present = Present::decode(range, &mut rest)?;
            let mut reader = Reader(rest);
            let facts = reader.bytes((present.length as usize).div_ceil(PAGE) * PageFacts::BYTES)?;
            rest = reader.0;
            Ok(Self { present, facts })
        };
        let examined = asked.iter().map(decode).collect::<Result<_>>()?;
        Reader(rest).end()?;
        Ok(examined)
    }

    /// What the page of this number in the range says; `None`: it is not there.
    pub fn page(&self, number: usize) -> Option<PageFacts> {
        let facts = self.facts.chunks_exact(PageFacts::BYTES).nth(number)?;
        let (lsn, rest) = facts.split_first_chunk()?;
        let (logged, rest) = rest.split_first_chunk()?;
        Some(PageFacts {
            lsn: Lsn(u64::from_le_bytes(*lsn)),
            logged: *logged,
            is_all_visible: rest.first().is_some_and(|flag| *flag != 0),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers_survive_the_wire() {
        let key = DigestKey::from_bytes([7; 32]);
        let asked =
            [Range { file: 1, offset: 0, length: 3 * 8192 }, Range { file: 2, offset: 0, length: 100 }];
        let content = [vec![1; 2 * PAGE], vec![2; 60]];
        let mut body = Vec::new();
        for part in &content {
            let mut digests = Vec::new();
            key.digest_pages(part, &mut digests);
            encode_examined(u32::try_from(part.len()).expect("small"), &digests, part, &key, &mut body);
        }
        let examined = Examined::decode_all(&asked, &body).expect("valid");
        assert_eq!(examined[0].present.length, 2 * 8192);
        assert_eq!(examined[0].page(1), Some(PageFacts::of(&content[0][PAGE..], &key)));
        assert_eq!(examined[0].page(2), None);
        assert_eq!(examined[1].page(0), Some(PageFacts::of(&content[1], &key)));
        body.pop();
        assert!(Examined::decode_all(&asked, &body).is_err());
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_decoded_or_refused(body: Vec<u8>, length in 0_u32..100_000) {
            let _ = Examined::decode_all(&[Range { file: 0, offset: 0, length }], &body);
        }
    }
}
