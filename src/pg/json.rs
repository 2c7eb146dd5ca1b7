//! SQL `jsonb`, without pgrx's panics on text that serde_json does not take.

use std::ffi::CStr;

use pgpool_recovery_core::error::{Error, Kind, Result};
use pgrx::callconv::{Arg, ArgAbi};
use pgrx::nullable::Nullable;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::{FromDatum, JsonB, pg_sys};
use serde_json::Value;

use super::text::server_text;

/// A `jsonb` argument in its text form.
pub(crate) struct JsonText(Vec<u8>);

impl JsonText {
    /// The value; `argument` names it in the error.
    pub(crate) fn parse(&self, argument: &str) -> Result<Value> {
        serde_json::from_slice(&self.0).map_err(|error| {
            Error::new(Kind::InvalidArgument, format!("argument \"{argument}\" is not usable JSON"))
                .detail(format!("The parser says: {error}."))
        })
    }
}

/// A result for SQL.
pub(crate) fn to_jsonb(value: &Value) -> JsonB {
    JsonB(portable(value))
}

/// The value with every string fit for the database, see [`server_text`].
fn portable(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(server_text(text)),
        Value::Array(items) => Value::Array(items.iter().map(portable).collect()),
        Value::Object(fields) => {
            Value::Object(fields.iter().map(|(key, value)| (server_text(key), portable(value))).collect())
        }
        other => other.clone(),
    }
}

impl FromDatum for JsonText {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _type: pg_sys::Oid,
    ) -> Option<Self> {
        if is_null || datum.is_null() {
            return None;
        }
        // SAFETY: the caller vouches for a datum of type jsonb. jsonb_out returns a palloc'd C string
        // that lives as long as the call's memory context; it is copied at once.
        unsafe {
            let text = pgrx::direct_function_call::<&CStr>(pg_sys::jsonb_out, &[Some(datum)])?;
            Some(Self(text.to_bytes().to_vec()))
        }
    }
}

// SAFETY: only ever given a jsonb argument, by the SQL this very impl makes pgrx generate.
unsafe impl<'fcx> ArgAbi<'fcx> for JsonText {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: the caller vouches for a non-null argument of this type.
        unsafe { arg.unbox_arg_using_from_datum().expect("the caller checked that the argument is not null") }
    }

    unsafe fn unbox_nullable_arg(arg: Arg<'_, 'fcx>) -> Nullable<Self> {
        // SAFETY: the caller vouches for an argument of this type.
        unsafe { arg.unbox_arg_using_from_datum().into() }
    }
}

// SAFETY: the mapping names the type whose representation FromDatum above reads.
unsafe impl SqlTranslatable for JsonText {
    const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!(JsonText);
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: std::result::Result<SqlMappingRef, ArgumentError> =
        Ok(SqlMappingRef::literal("jsonb"));
    const RETURN_SQL: std::result::Result<ReturnsRef, ReturnsError> =
        Ok(ReturnsRef::One(SqlMappingRef::literal("jsonb")));
}
