//! The kinds of settings: what PostgreSQL stores for one, and how its value is read and checked, be it set or passed
//! as an option.

use std::ffi::{CStr, CString};
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::time::Duration;

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgrx::guc::{GucContext, GucEnum, GucFlags, GucRegistry, GucSetting};
use serde_json::Value;

use crate::settings::options;

/// What `pg_settings` shows of a setting of any kind.
pub(crate) struct Definition {
    /// The whole name.
    pub(super) name: &'static CStr,
    pub(super) about: &'static CStr,
    pub(super) context: GucContext,
    pub(super) flags: GucFlags,
}

/// A setting of one kind.
pub(crate) trait Setting {
    /// What the code works with.
    type Value;

    /// Registers the setting with PostgreSQL.
    fn define(&'static self, definition: Definition);

    /// The value as long as it is not set.
    fn default(&self) -> Self::Value;

    /// The session's value. `name` is for errors.
    fn current(&self, name: &str) -> Result<Self::Value>;

    /// A value that a call passes under the name `key`.
    fn option(&self, key: &str, value: &Value) -> Result<Self::Value>;
}

/// A whole number within a range that `T` can hold.
pub(crate) struct Integer<T> {
    setting: GucSetting<i32>,
    default: i32,
    range: RangeInclusive<i32>,
    unit: GucFlags,
    value: PhantomData<fn() -> T>,
}

impl<T> Integer<T> {
    pub(super) const fn new(default: i32, range: RangeInclusive<i32>) -> Self {
        let unit = GucFlags::empty();
        Self { setting: GucSetting::<i32>::new(default), default, range, unit, value: PhantomData }
    }

    /// The unit of the setting, and of an option, which has none.
    pub(super) const fn in_kilobytes(self) -> Self {
        Self { unit: GucFlags::UNIT_KB, ..self }
    }
}

impl<T: TryFrom<i32>> Integer<T> {
    fn read(number: i32) -> T {
        T::try_from(number).ok().expect("the range of the row fits its type")
    }
}

impl<T: TryFrom<i32>> Setting for Integer<T> {
    type Value = T;

    fn define(&'static self, definition: Definition) {
        let Definition { name, about, context, flags } = definition;
        let (min, max) = (*self.range.start(), *self.range.end());
        let flags = flags | self.unit;
        GucRegistry::define_int_guc(name, about, c"", &self.setting, min, max, context, flags);
    }

    fn default(&self) -> T {
        Self::read(self.default)
    }

    fn current(&self, _name: &str) -> Result<T> {
        Ok(Self::read(self.setting.get()))
    }

    fn option(&self, key: &str, value: &Value) -> Result<T> {
        options::integer(key, value, &self.range).map(Self::read)
    }
}

/// A number within a range.
pub(crate) struct Real {
    setting: GucSetting<f64>,
    default: f64,
    range: RangeInclusive<f64>,
}

impl Real {
    pub(super) const fn new(default: f64, range: RangeInclusive<f64>) -> Self {
        Self { setting: GucSetting::<f64>::new(default), default, range }
    }
}

impl Setting for Real {
    type Value = f64;

    fn define(&'static self, definition: Definition) {
        let Definition { name, about, context, flags } = definition;
        let (min, max) = (*self.range.start(), *self.range.end());
        GucRegistry::define_float_guc(name, about, c"", &self.setting, min, max, context, flags);
    }

    fn default(&self) -> f64 {
        self.default
    }

    fn current(&self, _name: &str) -> Result<f64> {
        Ok(self.setting.get())
    }

    fn option(&self, key: &str, value: &Value) -> Result<f64> {
        options::number(key, value, &self.range)
    }
}

/// A whole number of seconds.
pub(crate) struct Seconds(Integer<u64>);

impl Seconds {
    pub(super) const fn new(default: i32, range: RangeInclusive<i32>) -> Self {
        Self(Integer { unit: GucFlags::UNIT_S, ..Integer::new(default, range) })
    }
}

impl Setting for Seconds {
    type Value = Duration;

    fn define(&'static self, definition: Definition) {
        self.0.define(definition);
    }

    fn default(&self) -> Duration {
        Duration::from_secs(self.0.default())
    }

    fn current(&self, name: &str) -> Result<Duration> {
        self.0.current(name).map(Duration::from_secs)
    }

    fn option(&self, key: &str, value: &Value) -> Result<Duration> {
        self.0.option(key, value).map(Duration::from_secs)
    }
}

/// On or off.
pub(crate) struct Boolean {
    setting: GucSetting<bool>,
    default: bool,
}

impl Boolean {
    pub(super) const fn new(default: bool) -> Self {
        Self { setting: GucSetting::<bool>::new(default), default }
    }
}

impl Setting for Boolean {
    type Value = bool;

    fn define(&'static self, definition: Definition) {
        let Definition { name, about, context, flags } = definition;
        GucRegistry::define_bool_guc(name, about, c"", &self.setting, context, flags);
    }

    fn default(&self) -> bool {
        self.default
    }

    fn current(&self, _name: &str) -> Result<bool> {
        Ok(self.setting.get())
    }

    fn option(&self, key: &str, value: &Value) -> Result<bool> {
        options::boolean(key, value)
    }
}

/// An enum that `choices!` made: the words for its variants.
pub(crate) trait Words: GucEnum + 'static {
    const WORDS: &'static [(&'static CStr, Self)];
}

/// One of a few words.
pub(crate) struct Choice<T: GucEnum> {
    setting: GucSetting<T>,
    default: T,
}

impl<T: Words> Choice<T> {
    pub(super) const fn new(default: T) -> Self {
        Self { setting: GucSetting::<T>::new(default), default }
    }
}

impl<T: Words> Setting for Choice<T> {
    type Value = T;

    fn define(&'static self, definition: Definition) {
        let Definition { name, about, context, flags } = definition;
        GucRegistry::define_enum_guc(name, about, c"", &self.setting, context, flags);
    }

    fn default(&self) -> T {
        self.default
    }

    fn current(&self, _name: &str) -> Result<T> {
        Ok(self.setting.get())
    }

    fn option(&self, key: &str, value: &Value) -> Result<T> {
        options::choice(key, value, T::WORDS)
    }
}

/// A text, from which a function makes a `T`.
pub(crate) struct Text<T = String> {
    setting: GucSetting<Option<CString>>,
    default: &'static CStr,
    read: fn(&str, &str) -> Result<T>,
}

impl Text {
    /// Any text.
    pub(super) const fn new(default: &'static CStr) -> Self {
        Self::read_by(default, |_, text| Ok(text.to_owned()))
    }
}

impl<T> Text<T> {
    /// A text that `read` understands: it gets the name, for errors, and the text.
    pub(super) const fn read_by(default: &'static CStr, read: fn(&str, &str) -> Result<T>) -> Self {
        Self { setting: GucSetting::<Option<CString>>::new(Some(default)), default, read }
    }
}

impl<T> Setting for Text<T> {
    type Value = T;

    fn define(&'static self, definition: Definition) {
        let Definition { name, about, context, flags } = definition;
        GucRegistry::define_string_guc(name, about, c"", &self.setting, context, flags);
    }

    fn default(&self) -> T {
        (self.read)("", &self.default.to_string_lossy()).expect("the default of the row can be read")
    }

    fn current(&self, name: &str) -> Result<T> {
        let text = self.setting.get().unwrap_or_default().into_string().map_err(|_| {
            Error::new(Kind::InvalidArgument, format!("setting \"{name}\" is not valid UTF-8"))
                .hint("Use ASCII or UTF-8, whatever the encoding of the database.")
        })?;
        (self.read)(name, &text).map_err(|error| match error.hint {
            Some(_) => error,
            None => error.hint(format!("Correct pgpool_recovery.{name}.")),
        })
    }

    fn option(&self, key: &str, value: &Value) -> Result<T> {
        (self.read)(key, &options::text(key, value)?)
    }
}
