use orion_apid::http::route::{AGENT_ROUTES, CLIENT_ROUTES};
use orion_core::ProblemCode;

const PAGE: &str = include_str!("../../../docs/api.md");

#[test]
fn every_route_and_every_problem_code_is_explained_and_nothing_else() {
    for route in CLIENT_ROUTES.iter().chain(AGENT_ROUTES) {
        let heading = format!("### {} {}\n", route.method, route.pattern);
        assert!(
            PAGE.contains(&heading),
            "docs/api.md lacks `{}`",
            heading.trim()
        );
    }
    let headings = PAGE.lines().filter(|line| line.starts_with("### ")).count();
    assert_eq!(headings, CLIENT_ROUTES.len() + AGENT_ROUTES.len());
    for code in ProblemCode::ALL {
        let row = format!("| `{}` | {} |", code.as_str(), code.status());
        assert!(PAGE.contains(&row), "docs/api.md lacks `{row}`");
    }
    let rows = PAGE
        .lines()
        .filter(|line| line.starts_with("| `") && line.contains("` | 4") || line.contains("` | 5"));
    assert_eq!(rows.count(), ProblemCode::ALL.len());
}
