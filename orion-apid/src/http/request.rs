//! What a handler gets of a request: the body within its limits, the id in the path, the headers.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use orion_core::ProblemCode;

use crate::app::App;
use crate::http::fields::{Fields, Unknown};
use crate::http::problem::Failure;

/// The largest body (bytes). A registration with sixteen host keys has a quarter of it.
pub const MAX_BODY: usize = 64 * 1024;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How much of a refused body is read and thrown away (bytes), and for how long. A client that sends all before it
/// reads would else get a broken connection instead of the answer.
const DISCARD: usize = 64 * 1024 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);

/// One call of a route, its body read.
#[derive(Debug)]
pub struct Call {
    /// Everything a handler works with.
    pub app: Arc<App>,
    /// 32 hexadecimal digits, ours alone.
    pub request_id: String,
    /// The body; empty where there is none.
    pub body: Bytes,
    /// The request's headers.
    pub headers: HeaderMap,
    /// The parameter of the path, with its name: `rental_id`.
    pub parameter: Option<(String, String)>,
    /// What stands behind the `?`.
    pub query: String,
}

impl Call {
    /// The id in the path as this kind of id.
    ///
    /// # Errors
    /// `invalid_value` naming the parameter where the text is no id.
    pub fn path_id<T>(&self, id: fn(u64) -> T) -> Result<T, Failure> {
        let Some((name, text)) = &self.parameter else {
            return Err(Failure::internal("the route has no parameter"));
        };
        parse_id(text).map(id).ok_or_else(|| {
            let range = format!("must be a whole number, 1 to {}", u64::MAX);
            Failure::field(ProblemCode::InvalidValue, name, range)
        })
    }

    /// The body's fields.
    ///
    /// # Errors
    /// `unsupported_media_type`, `malformed_json`, `wrong_type`.
    pub fn fields(&self) -> Result<Fields, Failure> {
        if !self.body.is_empty() && !declares_json(&self.headers) {
            let detail = "send the body with `Content-Type: application/json`";
            return Err(Failure::new(ProblemCode::UnsupportedMediaType, detail));
        }
        Fields::parse(&self.body)
    }

    /// For routes without fields: nothing, or an empty object.
    ///
    /// # Errors
    /// As [`fields`](Self::fields); `invalid_value` naming whatever field there is.
    pub fn no_fields(&self) -> Result<(), Failure> {
        if self.body.trim_ascii().is_empty() {
            return Ok(());
        }
        self.fields()?.finish(Unknown::Refused, Some(()))
    }
}

/// The values of the `known` parameters of a query, in that order.
///
/// # Errors
/// `invalid_value` naming a parameter that is not known, or is there twice.
pub fn parameters<'q, const N: usize>(
    query: &'q str,
    known: [&str; N],
) -> Result<[Option<&'q str>; N], Failure> {
    let mut values = [None; N];
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let fault = |detail| {
            // The name is the client's own text and may be as long as a head.
            let name: String = name.chars().take(64).collect();
            Failure::field(ProblemCode::InvalidValue, &name, detail)
        };
        let mut slots = known.iter().zip(&mut values);
        let Some((_, slot)) = slots.find(|(known, _)| **known == name) else {
            return Err(fault("is not a parameter of this request"));
        };
        if slot.replace(value).is_some() {
            return Err(fault("is there twice"));
        }
    }
    Ok(values)
}

/// Decimal digits without sign and leading zero, as we write them ourselves: one id has one path.
fn parse_id(text: &str) -> Option<u64> {
    let canonical = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    if canonical { text.parse().ok() } else { None }
}

fn declares_json(headers: &HeaderMap) -> bool {
    let declared = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = declared.and_then(|text| text.split(';').next());
    essence.is_some_and(|text| text.trim().eq_ignore_ascii_case("application/json"))
}

/// Reads a body within size and time.
///
/// # Errors
/// `body_too_large`, `request_timeout`, or `malformed_json` where the connection broke in the middle.
pub async fn read_body(headers: &HeaderMap, mut body: Incoming) -> Result<Bytes, Failure> {
    let too_large = || {
        let detail = format!("the body must have at most {MAX_BODY} bytes");
        Failure::new(ProblemCode::BodyTooLarge, detail)
    };
    if declared_length(headers)
        .is_some_and(|length| length > u64::try_from(MAX_BODY).unwrap_or(u64::MAX))
    {
        discard(headers, body);
        return Err(too_large());
    }
    let collected = {
        let limited = Limited::new(&mut body, MAX_BODY);
        tokio::time::timeout(BODY_TIMEOUT, limited.collect()).await
    };
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            discard(headers, body);
            Err(too_large())
        }
        Ok(Err(error)) => {
            let detail = format!("the body ended too early: {error}");
            Err(Failure::new(ProblemCode::MalformedJson, detail))
        }
        Err(_) => {
            let detail = format!("the body must arrive within {} s", BODY_TIMEOUT.as_secs());
            Err(Failure::new(ProblemCode::RequestTimeout, detail))
        }
    }
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// Reads what is left of a body and throws it away, within bounds, while the answer is on its way.
pub fn discard(headers: &HeaderMap, mut body: Incoming) {
    // Who asked before sending is told by the answer alone; reading would say "continue".
    if body.is_end_stream() || headers.contains_key(header::EXPECT) {
        return;
    }
    tokio::spawn(async move {
        let rest = async {
            let mut left = DISCARD;
            while let Some(Ok(frame)) = body.frame().await {
                let length = frame.data_ref().map_or(0, Bytes::len);
                let Some(less) = left.checked_sub(length) else {
                    break;
                };
                left = less;
            }
        };
        if tokio::time::timeout(DISCARD_TIMEOUT, rest).await.is_err() {
            tracing::debug!("a refused body did not end");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn only_ids_as_we_write_them_are_ids() {
        for bad in [
            "",
            "0",
            "-1",
            "+1",
            "abc",
            "1.0",
            "01",
            "1e3",
            "1 ",
            "%31",
            "1180591620717411303424",
        ] {
            assert_eq!(parse_id(bad), None, "{bad}");
        }
        assert_eq!(parse_id("1"), Some(1));
        assert_eq!(parse_id("18446744073709551615"), Some(u64::MAX));
    }

    #[test]
    fn a_parameter_is_known_and_there_once() {
        let known = ["move", "dry_run"];
        assert_eq!(parameters("", known).unwrap(), [None, None]);
        let both = parameters("dry_run=true&&move", known).unwrap();
        assert_eq!(both, [Some(""), Some("true")]);
        for (bad, named) in [
            ("mvoe=true", "mvoe"),
            ("move=true&move=true", "move"),
            ("%6dove=true", "%6dove"),
            ("=true", ""),
        ] {
            let failure = parameters(bad, known).unwrap_err();
            assert_eq!(failure.errors[0].field, named, "{bad}");
        }
    }

    #[test]
    fn json_may_be_declared_with_parameters_and_in_capitals() {
        let declared = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(text));
            declares_json(&headers)
        };
        assert!(declared("application/json"));
        assert!(declared("Application/JSON; charset=utf-8"));
        assert!(!declared("application/x-www-form-urlencoded"));
        assert!(!declared("application/jsonx"));
        assert!(!declares_json(&HeaderMap::new()));
    }
}
