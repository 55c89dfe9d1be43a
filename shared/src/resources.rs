//! How much of a node an instance may use. Texts of the API are parsed once, here.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a size was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a size: use a whole positive number with k, m, g or t (powers of 1024), like `2g`")]
pub struct InvalidBytes(String);

/// A size in bytes, written like Docker's: `512m`, `2G`, `4g`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(u64);

impl Bytes {
    /// So many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many GiB.
    pub const fn gibibytes(count: u64) -> Self {
        Self(count << 30)
    }

    /// So many MiB.
    pub const fn mebibytes(count: u64) -> Self {
        Self(count << 20)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for Bytes {
    type Err = InvalidBytes;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidBytes(text.chars().take(64).collect());
        let lower = text.trim().to_ascii_lowercase();
        let unit = lower.trim_end_matches("ib").trim_end_matches('b');
        let (digits, shift) = match unit.as_bytes().last() {
            Some(b'k') => (&unit[..unit.len() - 1], 10),
            Some(b'm') => (&unit[..unit.len() - 1], 20),
            Some(b'g') => (&unit[..unit.len() - 1], 30),
            Some(b't') => (&unit[..unit.len() - 1], 40),
            _ => (unit, 0),
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid());
        }
        let count: u64 = digits.parse().map_err(|_| invalid())?;
        match count.checked_mul(1 << shift) {
            // Docker and cgroups count in signed 64 bits.
            Some(bytes @ 1..=0x7fff_ffff_ffff_ffff) => Ok(Self(bytes)),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "t"), (30, "g"), (20, "m"), (10, "k")] {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(formatter, "{}{unit}", self.0 >> shift);
            }
        }
        write!(formatter, "{}", self.0)
    }
}

/// Why a number of CPUs was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a number of CPUs: use 0.01 to 1024, like `1` or `0.5`")]
pub struct InvalidCpus(String);

/// A share of processors, in thousandths of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cpus(u32);

impl Cpus {
    /// So many thousandths of one CPU.
    pub const fn thousandths(count: u32) -> Self {
        Self(count)
    }

    /// Docker's `NanoCpus`.
    pub const fn nano(self) -> i64 {
        self.0 as i64 * 1_000_000
    }

    /// Thousandths of one CPU.
    pub const fn milli(self) -> u32 {
        self.0
    }
}

impl FromStr for Cpus {
    type Err = InvalidCpus;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidCpus(text.chars().take(64).collect());
        let trimmed = text.trim();
        if !trimmed.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
            return Err(invalid());
        }
        let count: f64 = trimmed.parse().map_err(|_| invalid())?;
        if !(0.01..=1024.0).contains(&count) {
            return Err(invalid());
        }
        // In range, so neither cut nor negative.
        Ok(Self((count * 1000.0).round() as u32))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", f64::from(self.0) / 1000.0)
    }
}

/// What an instance reserves and may not exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Memory; swap is not given on top.
    pub memory: Bytes,
    /// Processors.
    pub cpus: Cpus,
    /// Size of the volume.
    pub storage: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes__should_read_what_docker_reads() {
        for (text, bytes) in [
            ("2G", 2 << 30),
            ("4g", 4 << 30),
            ("512m", 512 << 20),
            ("1024", 1024),
            ("10GiB", 10 << 30),
            ("1gb", 1 << 30),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "g", "-1", "-2g", "0", "1.5g", "9999999999t", "2x", "18446744073709551615"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        assert_eq!(Bytes::gibibytes(10).to_string(), "10g");
    }

    #[test]
    fn cpus__should_be_positive_and_bounded() {
        assert_eq!("1".parse(), Ok(Cpus(1000)));
        assert_eq!("0.5".parse(), Ok(Cpus(500)));
        for text in ["", "-1", "0", "1e9", "nan", "inf", "1025", "."] {
            assert!(text.parse::<Cpus>().is_err(), "{text}");
        }
    }
}
