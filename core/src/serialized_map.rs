//! Maps of texts, such as headers, in the form in which Envoy passes them to a module.

/// The format: the number of members, the lengths of each name and value, then the names and values, each followed by a
/// zero byte. Numbers are 32-bit little-endian. The bytes are read in place, because splitting them would allocate memory
/// for each text.
#[derive(Debug)]
pub struct SerializedMap(Vec<u8>);

/// Most maps of request headers are shorter, in bytes. They are built with one allocation.
const USUAL_LENGTH: usize = 1024;

impl SerializedMap {
    /// Returns `None` unless `bytes` is exactly one such map.
    pub fn parse(bytes: Vec<u8>) -> Option<Self> {
        let map = Self(bytes);
        map.is_whole().then_some(map)
    }

    /// Builds the map of these members. Returns `None` if a length does not fit in 32 bits.
    pub fn of<N: AsRef<[u8]>, V: AsRef<[u8]>>(members: &[(N, V)]) -> Option<Self> {
        Self::from_members(members.iter().map(|(name, value)| (name.as_ref(), value.as_ref())))
    }

    /// Builds the map of these members. Returns `None` if a length does not fit in 32 bits.
    pub fn from_members<'m>(members: impl Iterator<Item = (&'m [u8], &'m [u8])> + Clone) -> Option<Self> {
        let mut count = 0_u32;
        let mut bytes = Vec::with_capacity(USUAL_LENGTH);
        bytes.extend_from_slice(&count.to_le_bytes());
        for (name, value) in members.clone() {
            count = count.checked_add(1)?;
            for text in [name, value] {
                bytes.extend_from_slice(&u32::try_from(text.len()).ok()?.to_le_bytes());
            }
        }
        for (name, value) in members {
            for text in [name, value] {
                bytes.extend_from_slice(text);
                bytes.push(0);
            }
        }
        *bytes.first_chunk_mut()? = count.to_le_bytes();
        Some(Self(bytes))
    }

    fn is_whole(&self) -> bool {
        let Some((lengths, mut texts)) = self.sections() else { return false };
        lengths.iter().all(|lengths| member(lengths, &mut texts).is_some()) && texts.is_empty()
    }

    /// Length of the serialized map in bytes.
    pub fn length(&self) -> usize {
        self.0.len()
    }

    /// The names and values, in the order of the map.
    pub fn iter(&self) -> Members<'_> {
        let (lengths, texts) = self.sections().unwrap_or_default();
        Members { lengths: lengths.iter(), texts }
    }

    /// The values of the members with this name.
    pub fn values<'m, 'n>(&'m self, name: &'n [u8]) -> Values<'m, 'n> {
        let (lengths, texts) = self.sections().unwrap_or_default();
        Values { lengths: lengths.iter(), texts, name }
    }

    /// An iterator without values.
    pub fn no_values<'m, 'n>() -> Values<'m, 'n> {
        Values { lengths: [].iter(), texts: &[], name: &[] }
    }

    /// The lengths of all members, and the bytes after them.
    fn sections(&self) -> Option<(&[[u8; 8]], &[u8])> {
        let (count, rest) = self.0.split_first_chunk::<4>()?;
        let (lengths, texts) = rest.split_at_checked(u32_le(*count)?.checked_mul(8)?)?;
        Some((lengths.as_chunks().0, texts))
    }
}

/// The names and values of a [`SerializedMap`]. The default has none.
#[derive(Debug, Default)]
pub struct Members<'m> {
    lengths: std::slice::Iter<'m, [u8; 8]>,
    texts: &'m [u8],
}

impl<'m> Iterator for Members<'m> {
    type Item = (&'m [u8], &'m [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        member(self.lengths.next()?, &mut self.texts)
    }
}

/// The values of one name in a [`SerializedMap`].
#[derive(Debug)]
pub struct Values<'m, 'n> {
    lengths: std::slice::Iter<'m, [u8; 8]>,
    texts: &'m [u8],
    name: &'n [u8],
}

impl<'m> Iterator for Values<'m, '_> {
    type Item = &'m [u8];

    /// Compares a name only if its length is right, because most of the filter's own time goes into such searches.
    fn next(&mut self) -> Option<Self::Item> {
        for lengths in self.lengths.by_ref() {
            let [n0, n1, n2, n3, v0, v1, v2, v3] = *lengths;
            let (name, value) = (u32_le([n0, n1, n2, n3])?, u32_le([v0, v1, v2, v3])?);
            let (member, rest) = self.texts.split_at_checked(name.checked_add(value)?.checked_add(2)?)?;
            self.texts = rest;
            if name == self.name.len() && member.get(..name)? == self.name {
                return member.get(name.checked_add(1)?..)?.get(..value);
            }
        }
        None
    }
}

/// Takes the member with these lengths from the beginning of `texts`.
fn member<'m>(lengths: &[u8; 8], texts: &mut &'m [u8]) -> Option<(&'m [u8], &'m [u8])> {
    let [n0, n1, n2, n3, v0, v1, v2, v3] = *lengths;
    let name = zero_terminated(texts, u32_le([n0, n1, n2, n3])?)?;
    Some((name, zero_terminated(texts, u32_le([v0, v1, v2, v3])?)?))
}

fn u32_le(bytes: [u8; 4]) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(bytes)).ok()
}

fn zero_terminated<'m>(texts: &mut &'m [u8], length: usize) -> Option<&'m [u8]> {
    let (text, rest) = texts.split_at_checked(length)?;
    *texts = rest.strip_prefix(&[0])?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn incomplete_maps_and_trailing_bytes_are_refused() {
        let map = b"\x02\0\0\0\x03\0\0\0\x04\0\0\0\x04\0\0\0\0\0\0\0org\0acme\0mode\0\0";
        let read = SerializedMap::parse(map.to_vec()).unwrap();
        assert_eq!(read.iter().collect::<Vec<_>>(), [(b"org".as_slice(), b"acme".as_slice()), (b"mode", b"")]);
        for end in 0..map.len() {
            assert!(SerializedMap::parse(map[..end].to_vec()).is_none(), "{end}");
        }
        assert!(SerializedMap::parse([map.as_slice(), b"x"].concat()).is_none());
        assert_eq!(SerializedMap::parse(vec![0; 4]).unwrap().iter().count(), 0);
    }

    proptest! {
        #[test]
        fn a_map_is_read_as_it_was_written(members: Vec<(String, Vec<u8>)>) {
            let map = SerializedMap::parse(SerializedMap::of(&members).unwrap().0).unwrap();
            let read: Vec<_> = map.iter().map(|(name, value)| (String::from_utf8(name.to_vec()).unwrap(), value.to_vec())).collect();
            for (name, _) in &members {
                let values: Vec<_> = members.iter().filter(|(other, _)| other == name).map(|(_, value)| value).collect();
                prop_assert_eq!(map.values(name.as_bytes()).collect::<Vec<_>>(), values);
            }
            prop_assert_eq!(read, members);
        }

        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = SerializedMap::parse(bytes).map(|map| map.iter().chain(map.values(b"a").map(|value| (value, value))).count());
        }
    }
}
