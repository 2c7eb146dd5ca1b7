//! Asking an agent how it is.

use crate::error::{Error, Kind, Result};
use crate::sys::cancel::Cancel;
use crate::wire::link::Connector;
use crate::wire::link::control::Control;
use crate::wire::protocol::message::{self, Reply, Request};
use crate::wire::protocol::status::Status;
use crate::wire::protocol::{REPLY, REQUEST};

/// Asks the receiver at the other end. Tripping `cancel` ends it.
pub fn status(connector: &dyn Connector, cancel: &Cancel) -> Result<Status> {
    let place = connector.place();
    let control = Control::new(connector.connect(cancel)?, cancel.clone(), place.clone())?;
    control.send(REQUEST, &[&message::encode(&Request::Status)?])?;
    let unexpected = || Error::new(Kind::ProtocolViolation, format!("{place} sent no status"));
    match control.receive()? {
        Some((REPLY, body)) => match message::decode(&body)? {
            Reply::Status(status) => Ok(*status),
            Reply::Error(error) => Err(error),
            _ => Err(unexpected()),
        },
        Some(_) => Err(unexpected()),
        None => Err(control.closed()),
    }
}
