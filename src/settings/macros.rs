//! What is made of a row of the [table](crate::settings::table).

use std::ffi::CStr;

use pgpool_recovery_core::error::Result;
use pgrx::guc::GucFlags;
use serde_json::Value;

use crate::settings::Settings;

/// Who may pass an option, or see the value of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    All,
    /// An option is for superusers if it names a file, a command or a policy of the server's OS user, decides where
    /// a credential or the data goes, or how much of this server a recovery takes. A value is shown to superusers only
    /// if it names a file or a command of the server's OS user.
    Superusers,
    NoOne,
}

impl Who {
    /// The flags of a setting whose value these may see.
    pub(super) const fn shown(self) -> GucFlags {
        match self {
            Self::All => GucFlags::empty(),
            Self::Superusers | Self::NoOne => GucFlags::SUPERUSER_ONLY,
        }
    }
}

/// What a call may pass, as [`settings!`] makes it of a row.
pub(super) struct OptionRow {
    pub(super) name: &'static str,
    pub(super) who: Who,
    /// Checks a value passed under this name and puts it into the settings.
    pub(super) set: fn(&mut Settings, &str, &Value) -> Result<()>,
}

/// A text with a NUL at its end, as PostgreSQL wants it.
pub(super) const fn c_text(text: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("a NUL in the middle or none at the end"),
    }
}

/// Makes everything a setting needs from its row:
///
/// ```text
/// jobs: Integer<usize> = Integer::new(0, 0..=64),        name: kind = default, range, how it is read (see `kinds`)
///     option: Superusers, shown: All,                    who may pass it to a call, who may see its value
///     "Parallel streams; 0: by the number of CPUs.";     what pg_settings says about it
/// ```
///
/// This row becomes
/// - the setting `pgpool_recovery.jobs`, which `define()` registers with PostgreSQL,
/// - the field `jobs` of `Settings`, a `usize`; `Settings::default()` and `Settings::current()` fill it,
/// - the option `jobs` in `OPTIONS`, which passes the same check as the setting.
///
/// A row of `options` has an option and a field, and no setting: `name: type of the field = how the value is read`; its
/// default is that of the type, and everyone may pass it. A row of `caller` is a field only.
macro_rules! settings {
    (
        settings { $(
            $name:ident: $kind:ty = $new:expr, option: $option:ident, shown: $shown:ident, $about:literal;
        )* }
        options { $( $extra:ident: $extra_type:ty = $read:expr, $extra_about:literal; )* }
        caller { $( $fact:ident: $fact_type:ty, $fact_about:literal; )* }
    ) => {
        /// The settings that apply to one call, options included.
        #[derive(Debug, Clone, PartialEq)]
        pub(crate) struct Settings {
            $( #[doc = $about] pub(crate) $name: <$kind as $crate::settings::kinds::Setting>::Value, )*
            $( #[doc = $extra_about] pub(crate) $extra: $extra_type, )*
            $( #[doc = $fact_about] pub(crate) $fact: $fact_type, )*
        }

        struct Table {
            $( $name: $kind, )*
        }

        /// What PostgreSQL writes the values to.
        static TABLE: Table = Table {
            $( $name: $new, )*
        };

        /// Registers every row of `settings` with PostgreSQL.
        pub(super) fn define() {
            use $crate::settings::{kinds::{Definition, Setting}, macros::{Who, c_text}};
            $( TABLE.$name.define(Definition {
                name: const { c_text(concat!("pgpool_recovery.", stringify!($name), "\0")) },
                about: const { c_text(concat!($about, "\0")) },
                context: pgrx::guc::GucContext::Suset,
                flags: Who::$shown.shown(),
            }); )*
        }

        impl Default for Settings {
            fn default() -> Self {
                use $crate::settings::kinds::Setting;
                Self {
                    $( $name: TABLE.$name.default(), )*
                    $( $extra: Default::default(), )*
                    $( $fact: Default::default(), )*
                }
            }
        }

        impl Settings {
            /// The session's settings as they are now, without options.
            pub(crate) fn current() -> pgpool_recovery_core::error::Result<Self> {
                use $crate::settings::kinds::Setting;
                Ok(Self {
                    $( $name: TABLE.$name.current(stringify!($name))?, )*
                    $( $extra: Default::default(), )*
                    $( $fact: Default::default(), )*
                })
            }
        }

        /// What a call may pass, and the settings it may not, in the order of the rows.
        pub(super) const OPTIONS: &[$crate::settings::macros::OptionRow] = {
            use $crate::settings::{kinds::Setting, macros::{OptionRow, Who}};
            &[
                $( OptionRow {
                    name: stringify!($name),
                    who: Who::$option,
                    set: |settings, key, value| {
                        settings.$name = TABLE.$name.option(key, value)?;
                        Ok(())
                    },
                }, )*
                $( OptionRow {
                    name: stringify!($extra),
                    who: Who::All,
                    set: |settings, key, value| {
                        settings.$extra = $read(key, value)?;
                        Ok(())
                    },
                }, )*
            ]
        };
    };
}

/// Makes an enum for a setting that is one of a few words, with each word beside its variant.
macro_rules! choices {
    ($(
        $(#[$doc:meta])*
        $choice:ident { $( $(#[$variant_doc:meta])* $variant:ident = $word:tt, )* }
    )*) => { $(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, pgrx::guc::PostgresGucEnum)]
        pub(crate) enum $choice {
            $( $(#[$variant_doc])* #[name = $word] $variant, )*
        }

        impl $crate::settings::kinds::Words for $choice {
            const WORDS: &'static [(&'static std::ffi::CStr, Self)] = &[ $( ($word, Self::$variant), )* ];
        }
    )* };
}

pub(super) use {choices, settings};
