use super::*;

fn read(body: &str) -> Result<(u64, Option<String>), Failure> {
    let mut fields = Fields::parse(body.as_bytes())?;
    let count = fields.whole("count", &(1..=16));
    let note = fields.optional_text("note");
    fields.finish(Unknown::Refused, count.map(|count| (count, note)))
}

fn names(failure: &Failure) -> Vec<&str> {
    failure
        .errors
        .iter()
        .map(|error| error.field.as_str())
        .collect()
}

#[test]
fn what_is_not_json_is_malformed() {
    for body in [
        "",
        "  \n",
        "{",
        "count=1",
        "{\"count\":NaN}",
        "{} {}",
        "{\"count\":1,}",
        "\u{feff}{}",
    ] {
        assert_eq!(
            read(body).unwrap_err().code,
            ProblemCode::MalformedJson,
            "{body:?}"
        );
    }
    assert_eq!(
        Fields::parse(b"{\"a\":\"\xff\"}").unwrap_err().code,
        ProblemCode::MalformedJson
    );
}

#[test]
fn deeply_nested_json_is_refused_without_harm() {
    let deep = format!("{{\"count\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000));
    assert_eq!(read(&deep).unwrap_err().code, ProblemCode::MalformedJson);
}

#[test]
fn json_that_is_no_object_is_a_wrong_type() {
    for body in ["[]", "1", "\"count\"", "null", "true"] {
        assert_eq!(
            read(body).unwrap_err().code,
            ProblemCode::WrongType,
            "{body}"
        );
    }
}

#[test]
fn numbers_that_are_not_whole_are_wrong_types_and_never_rounded() {
    for value in [
        "1.5", "\"x\"", "\"1\"", "true", "null", "[1]", "{}", "0.1", "-1.5",
    ] {
        let failure = read(&format!("{{\"count\":{value}}}")).unwrap_err();
        assert_eq!(failure.code, ProblemCode::WrongType, "{value}");
        assert_eq!(names(&failure), ["count"], "{value}");
    }
}

#[test]
fn whole_numbers_out_of_range_are_named_with_the_range() {
    for value in [
        "0",
        "-1",
        "17",
        "1e9",
        "1000000000",
        "99999999999999999999999",
        "-1e300",
        "1e300",
    ] {
        let failure = read(&format!("{{\"count\":{value}}}")).unwrap_err();
        assert_eq!(failure.code, ProblemCode::InvalidValue, "{value}");
        assert_eq!(names(&failure), ["count"]);
        assert_eq!(failure.errors[0].detail, "must be 1 to 16");
    }
}

#[test]
fn a_whole_number_may_be_written_with_an_exponent() {
    assert_eq!(read("{\"count\":1e1}").unwrap().0, 10);
    assert_eq!(read("{\"count\":16.0}").unwrap().0, 16);
}

#[test]
fn every_fault_is_reported_at_once_and_a_wrong_type_decides_the_code() {
    let failure = read("{\"note\":7,\"cuont\":1}").unwrap_err();
    assert_eq!(failure.code, ProblemCode::WrongType);
    assert_eq!(names(&failure), ["count", "note", "cuont"]);
    let failure = read("{\"count\":1,\"Count\":1}").unwrap_err();
    assert_eq!(
        (failure.code, names(&failure)),
        (ProblemCode::InvalidValue, vec!["Count"])
    );
}

#[test]
fn a_field_that_is_there_twice_is_refused() {
    let failure = read("{\"count\":1,\"count\":2}").unwrap_err();
    assert_eq!(
        (failure.code, names(&failure)),
        (ProblemCode::InvalidValue, vec!["count"])
    );
}

#[test]
fn an_optional_field_may_be_absent_or_null() {
    assert_eq!(read("{\"count\":2}").unwrap(), (2, None));
    assert_eq!(read("{\"count\":2,\"note\":null}").unwrap(), (2, None));
    assert_eq!(
        read("{\"count\":2,\"note\":\"é {{ }}\"}").unwrap(),
        (2, Some("é {{ }}".into()))
    );
}

#[test]
fn tolerated_unknown_fields_do_no_harm() {
    let mut fields = Fields::parse(b"{\"count\":1,\"newer\":{}}").unwrap();
    let count = fields.whole("count", &(1..=2));
    assert_eq!(fields.finish(Unknown::Tolerated, count).unwrap(), 1);
}

#[test]
fn faults_inside_of_objects_and_lists_are_named_with_dots() {
    let body = br#"{"contact":{"host":"x","port":0,"extra":1},"keys":["a",1]}"#;
    let mut fields = Fields::parse(body).unwrap();
    let contact = fields.object("contact", Unknown::Refused, |inner| {
        inner.text("host").zip(inner.port("port"))
    });
    let keys = fields.texts("keys", 2);
    assert_eq!((contact, keys), (None, vec!["a".to_owned()]));
    let failure = fields.finish(Unknown::Refused, Some(())).unwrap_err();
    assert_eq!(names(&failure), ["contact.port", "contact.extra", "keys.1"]);
    assert_eq!(failure.code, ProblemCode::WrongType);
}

#[test]
fn a_list_may_not_be_longer_than_allowed() {
    let mut fields = Fields::parse(br#"{"keys":["a","b","c"]}"#).unwrap();
    assert!(fields.texts("keys", 2).is_empty());
    assert_eq!(
        fields.finish(Unknown::Refused, Some(())).unwrap_err().code,
        ProblemCode::InvalidValue
    );
}
