// Package istio asks Istio's own code which clusters istiod sends to the gateways of envoy/istio.
//
// The filter calls the clusters of Settings and of the identity provider. No route leads to them. If istiod sends a gateway
// only the clusters of its routes (PILOT_FILTER_GATEWAY_CLUSTER_CONFIG=true), an annotation of an EnvoyFilter must name them.
// Otherwise each request gets 503.
//
// Run it with scripts/istio. Neither `make test` nor CI runs it: it downloads 700 MB and compiles for minutes.
package istio

import (
	"os"
	"slices"
	"strings"
	"testing"

	"istio.io/istio/pilot/pkg/features"
	"istio.io/istio/pilot/pkg/model"
	"istio.io/istio/pilot/pkg/networking/core"
	"istio.io/istio/pkg/config/protocol"
	"istio.io/istio/pkg/test"
)

const (
	settings   = "outbound|9902||settings.apexmcp.svc.cluster.local"
	provider   = "outbound|443||your-company.okta.com"
	keys       = "jwks_https"
	annotation = "envoyfilter.istio.io/referenced-services"
)

// clusters returns the names of the clusters that a proxy of this kind gets, with this file applied.
func clusters(t *testing.T, kind model.NodeType, gateway, file string) []string {
	service := &model.Service{
		Hostname:   "settings.apexmcp.svc.cluster.local",
		Ports:      model.PortList{{Name: "http", Port: 9902, Protocol: protocol.HTTP}},
		Resolution: model.ClientSideLB,
		Attributes: model.ServiceAttributes{Name: "settings", Namespace: "apexmcp"},
	}
	istiod := core.NewConfigGenTest(t, core.TestOptions{Services: []*model.Service{service}, ConfigString: file})
	labels := map[string]string{"gateway.networking.k8s.io/gateway-name": gateway}
	proxy := istiod.SetupProxy(&model.Proxy{
		Type:            kind,
		ConfigNamespace: "apexmcp",
		Labels:          labels,
		Metadata:        &model.NodeMetadata{Namespace: "apexmcp", Labels: labels},
	})
	var names []string
	for _, cluster := range istiod.Clusters(proxy) {
		names = append(names, cluster.Name)
	}
	return names
}

func TestGatewaysGetTheClustersThatTheFilterCalls(t *testing.T) {
	for _, row := range []struct {
		file, gateway string
		kind          model.NodeType
		called        []string
		// The clusters that the proxy gets only because of the annotation, if istiod filters.
		annotated []string
	}{
		{"wasm-plugin.yaml", "gateway", model.Router, []string{settings, provider}, []string{settings, provider}},
		{"envoy-filter.yaml", "gateway", model.Router, []string{settings, keys}, []string{settings}},
		{"waypoint.yaml", "waypoint", model.Waypoint, []string{settings, keys}, []string{settings}},
	} {
		text, err := os.ReadFile("../../envoy/istio/" + row.file)
		if err != nil {
			t.Fatal(err)
		}
		for _, isFiltering := range []bool{false, true} {
			test.SetForTest(t, &features.FilterGatewayClusterConfig, isFiltering)
			got := clusters(t, row.kind, row.gateway, string(text))
			for _, wanted := range row.called {
				if !slices.Contains(got, wanted) {
					t.Errorf("%s, filtering: %v: %s is missing among %v", row.file, isFiltering, wanted, got)
				}
			}
		}
		without := clusters(t, row.kind, row.gateway, strings.ReplaceAll(string(text), annotation, "example.com/unused"))
		for _, needless := range row.annotated {
			if slices.Contains(without, needless) {
				t.Errorf("%s: without the annotation, %s is still there, so this test proves nothing", row.file, needless)
			}
		}
	}
}
