//! How a request is checked, whichever protocol it speaks.

use crate::{Request, Shared};

/// Why a request is refused: the status, and the reason in words.
pub(crate) struct Refusal(pub(crate) u16, pub(crate) String);

pub(crate) type Checked<T = ()> = Result<T, Refusal>;

/// Checks what both protocols ask of every request.
pub(crate) fn check_http(request: &Request, shared: &Shared, method: &str) -> Checked {
    check(
        request.method == method,
        &format!("the method is not {method}"),
    )?;
    let host = sole_header(request, "host")?;
    check(
        shared.is_origin(&origin_of(host, shared)),
        &format!("host is {host:?}, not the service's"),
    )?;
    check_header(request, "content-type", "application/json")?;
    let user_agent = sole_header(request, "user-agent")?;
    check(!user_agent.is_empty(), "user-agent is empty")?;
    check(
        request.headers("accept-encoding").all(|v| v == "identity"),
        "accept-encoding is not identity",
    )
}

/// The origin of a request to that host.
pub(crate) fn origin_of(host: &str, shared: &Shared) -> String {
    let origin = shared.origin();
    let scheme = origin.split("://").next().unwrap_or_default();
    format!("{scheme}://{host}")
}

/// Checks that a header is there once, with that value.
pub(crate) fn check_header(request: &Request, name: &str, value: &str) -> Checked {
    let is = sole_header(request, name)?;
    check(is == value, &format!("{name} is {is:?}, not {value:?}"))
}

/// Checks that a header is not there.
pub(crate) fn check_absent(request: &Request, name: &str) -> Checked {
    let absent = request.header(name).is_none();
    check(absent, &format!("{name} is not for this request"))
}

/// The value of a header that must be there once.
pub(crate) fn sole_header<'a>(request: &'a Request, name: &str) -> Checked<&'a str> {
    let mut values = request.headers(name);
    let value = values
        .next()
        .ok_or_else(|| Refusal(400, format!("{name} is missing")))?;
    check(values.next().is_none(), &format!("{name} is given twice"))?;
    Ok(value)
}

pub(crate) fn check(holds: bool, otherwise: &str) -> Checked {
    if holds {
        Ok(())
    } else {
        Err(Refusal(400, otherwise.to_owned()))
    }
}
