"""The API of the embedded portal, asked by the real client."""

from __future__ import annotations

import cryoet_data_portal as portal
import pytest
import requests
from gql.transport.exceptions import TransportConnectionFailed, TransportQueryError
from portal_fixture import SHARED_PORTAL, hand_made_tables, needs_shared_portal

from portal_extract.demo.graphql_server import GraphQLServer
from portal_extract.demo.instruments import Fault
from portal_extract.demo.portal import read_tables


@pytest.fixture(scope="module")
def api():
    with GraphQLServer(hand_made_tables()) as server:
        yield server


@pytest.fixture(scope="module")
def client(api):
    return portal.Client(api.graphql_url)


@pytest.fixture(autouse=True)
def healthy(api):
    api.fault = None
    api.log.clear()


def ids(rows):
    return sorted(row.id for row in rows)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], [11, 12, 13]),
        ([portal.Run.id == 11], [11]),
        ([portal.Run.id != 11], [12, 13]),
        ([portal.Run.id >= 12, portal.Run.id < 13], [12]),
        ([portal.Run.id._in([13, 11, 99])], [11, 13]),
        ([portal.Run.id._in([])], []),
        ([portal.Run.name.like("ts%")], [12]),
        ([portal.Run.name.ilike("ts%")], [11, 12]),
        ([portal.Run.name.like("TS 1+a%b")], [11]),
        ([portal.Run.name.like("t__2")], [12]),
        ([portal.Run.name == "TS 1+a%b"], [11]),
        ([portal.Run.dataset.organism_name == "Yeast"], [11, 12]),
        ([portal.Run.tiltseries.pixel_spacing > 3], [12]),
        ([portal.Run.per_section_parameters.major_defocus.is_null()], [11]),
        ([portal.Run.tiltseries.per_section_parameters.z_index == 2, portal.Run.name.like("TS%")], [11]),
        # two filters through one to-many relation: the same section must satisfy both
        (
            [
                portal.Run.per_section_parameters.z_index == 0,
                portal.Run.per_section_parameters.major_defocus == 31000,
            ],
            [],
        ),
        # an operator that the type does not have is dropped by the client
        ([portal.Run.id.like("1%")], [11, 12, 13]),
        # the same operator twice: the last one counts, two lists are joined
        ([portal.Run.id == 11, portal.Run.id == 12], [12]),
        ([portal.Run.id._in([11]), portal.Run.id._in([12])], [11, 12]),
    ],
)
def test_filters_mean_what_they_mean_on_the_portal(api, client, filters, expected):
    assert ids(portal.Run.find(client, filters)) == expected
    assert api.log.count("POST") == 1


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([portal.PerSectionParameters.major_defocus > 0], [31, 32]),
        ([portal.PerSectionParameters.major_defocus != 30000], [32]),
        ([portal.PerSectionParameters.major_defocus == None], [33]),  # noqa: E711
        ([portal.PerSectionParameters.major_defocus.is_null(False)], [31, 32]),
        ([portal.PerSectionParameters.astigmatic_angle.is_null()], [31, 32, 33]),
    ],
)
def test_nulls_match_only_when_asked_for(client, filters, expected):
    assert ids(portal.PerSectionParameters.find(client, filters)) == expected


def test_dates_compare_as_dates(client):
    later = portal.Dataset.find(client, [portal.Dataset.release_date > "2025-03-01T01:00:00+01:00"])
    assert ids(later) == [10002]
    assert later[0].release_date.isoformat() == "2025-03-02T00:00:00+00:00"


def test_strings_that_look_like_dates_compare_as_strings():
    tables = hand_made_tables()
    tables["Run"][0]["name"], tables["Run"][1]["name"] = "2025-03-01", "2025-03-01 again"
    with GraphQLServer(tables) as api:
        later = portal.Run.find(portal.Client(api.graphql_url), [portal.Run.name > "2025-03-01"])
    assert ids(later) == [11, 12]


def test_rows_come_in_table_order(client):
    assert [run.id for run in portal.Run.find(client)] == [13, 11, 12]


def test_relations_cost_one_request_each_and_missing_columns_are_null(api, client):
    series = portal.TiltSeries.get_by_id(client, 21)
    assert series.s3_omezarr_dir is None
    assert series.run.dataset.organism_name == "Yeast"
    assert ids(series.per_section_parameters) == [31, 32, 33]
    assert ids(series.run.frames) == [101, 102]
    assert api.log.count("POST") == 1 + 2 + 1 + 2
    assert portal.TiltSeries.get_by_id(client, 99) is None


def test_four_relations_may_be_chained_but_not_five(client):
    chain = portal.PerSectionParameters
    allowed = chain.frame.run.tiltseries.run.name == "TS 1+a%b"
    assert ids(portal.PerSectionParameters.find(client, [allowed])) == [31, 32, 33]
    refused = chain.frame.run.tiltseries.run.dataset.title == "x"
    with pytest.raises(TransportQueryError, match="Max filter depth exceeded"):
        portal.PerSectionParameters.find(client, [refused])


def test_too_many_values_are_a_masked_error(client):
    with pytest.raises(TransportQueryError, match=r"Unexpected error\."):
        portal.Run.find(client, [portal.Run.id._in(range(32768))])


def test_a_null_where_the_schema_has_none_spoils_the_whole_answer():
    tables = hand_made_tables()
    tables["Run"][1]["name"] = None
    with (
        GraphQLServer(tables) as api,
        pytest.raises(TransportQueryError, match=r"Unexpected error\."),
    ):
        portal.Run.find(portal.Client(api.graphql_url))


def test_an_unknown_type_of_table_is_refused():
    with pytest.raises(ValueError, match="TiltSeries"):
        GraphQLServer({"TiltSeries": []})


def ask(api, query):
    answer = requests.post(api.graphql_url, json={"query": query}, timeout=10)
    assert answer.status_code == 200
    return answer.json()


def test_hand_written_queries_have_connections_order_pages_and_aggregates(api):
    query = """{
      runs(orderBy: {name: desc}, limitOffset: {limit: 2, offset: 1}) {
        name
        dataset { organismName }
        perSectionParameters(first: 2, orderBy: [{majorDefocus: asc_nulls_first}]) {
          pageInfo { hasNextPage endCursor }
          edges { node { zIndex } }
        }
        perSectionParametersAggregate { aggregate { count avg { majorDefocus } max { zIndex } } }
      }
      runsAggregate { aggregate { count groupBy { dataset { organismName } } } }
    }"""
    data = ask(api, query)["data"]
    assert [run["name"] for run in data["runs"]] == ["lamella", "TS 1+a%b"]
    last = data["runs"][1]
    assert [edge["node"]["zIndex"] for edge in last["perSectionParameters"]["edges"]] == [2, 0]
    assert last["perSectionParameters"]["pageInfo"]["hasNextPage"]
    assert last["perSectionParametersAggregate"]["aggregate"] == [
        {"count": 3, "avg": {"majorDefocus": 30500.0}, "max": {"zIndex": 2}}
    ]
    groups = data["runsAggregate"]["aggregate"]
    assert {g["groupBy"]["dataset"]["organismName"]: g["count"] for g in groups} == {"Yeast": 2, "Mouse": 1}


def test_runs_can_be_found_by_the_number_of_their_relatives(api):
    query = """{ runs(where: {perSectionParametersAggregate:
        {count: {filter: {zIndex: {_gte: 1}}, predicate: {_eq: 2}}}}) { id } }"""
    assert ask(api, query)["data"] == {"runs": [{"id": 11}]}


def test_bad_queries_are_explained_with_status_200(api):
    answer = ask(api, "{ runs { nonsense } }")
    assert "nonsense" in answer["errors"][0]["message"]
    assert "Syntax Error" in ask(api, "{ runs {")["errors"][0]["message"]


def test_faults_reach_the_client(api, client):
    api.fault = lambda request: Fault(status=503) if request.number < 2 else None
    assert len(portal.Run.find(client)) == 3
    assert api.log.count("POST") == 3
    api.fault = lambda request: Fault(reset=True)
    with pytest.raises(TransportConnectionFailed):
        portal.Run.find(client)


@pytest.mark.shared
@needs_shared_portal
def test_every_table_of_the_reference_portal_is_served():
    tables = read_tables(SHARED_PORTAL)
    with GraphQLServer(tables) as api:
        client = portal.Client(api.graphql_url)
        for name, rows in tables.items():
            model = getattr(portal, {"Tiltseries": "TiltSeries"}.get(name, name), None)
            if model is not None:
                assert ids(model.find(client)) == sorted(row["id"] for row in rows), name
        picks = portal.AnnotationFile.find(
            client,
            [
                portal.AnnotationFile.annotation_shape.annotation.run.id == 17841,
                portal.AnnotationFile.format == "ndjson",
            ],
        )
        assert len(picks) == 3
        absent = portal.Run.find(client, [portal.Run.identified_objects.object_name == "proteasome complex"])
        assert ids(absent) == [17841]
