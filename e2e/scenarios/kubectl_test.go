package scenarios

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// TestKubectl looks at the cluster, backs up and cancels with the plugin of kubectl.
func TestKubectl(t *testing.T) {
	s := newScenario(t)
	plugin := func(args ...string) string {
		t.Helper()
		out, err := s.kit.Kubectl(s.ctx, append([]string{"blockmover", "-n", s.kit.VeleroNamespace}, args...)...)
		require.NoError(t, err)
		return out
	}
	decode := func(into any, args ...string) {
		t.Helper()
		require.NoError(t, json.Unmarshal([]byte(plugin(append(args, "-o", "json")...)), into))
	}
	t.Log(plugin("doctor"))
	var findings []struct{ Check, Verdict, What string }
	decode(&findings, "doctor")
	require.GreaterOrEqual(t, len(findings), 10)
	for _, f := range findings {
		require.Equal(t, "ok", f.Verdict, "%s: %s", f.Check, f.What)
	}

	app := s.app("kubectl")
	volume := app.Namespace + "/" + kit.DiskPVC
	names := []string{s.name("kubectl-full"), s.name("kubectl-next")}
	for n, flag := range []string{"--full", "--incremental"} {
		s.deleteBackupInTheEnd(names[n])
		out := plugin(append([]string{"backup", "create", names[n], flag, "--wait", "--include-namespaces", app.Namespace},
			s.policy("version: v1\nvolumePolicies:\n- conditions: {csi: {}}\n  action: {type: custom, parameters: {mover: blockmover, retainSnapshot: always}}\n")...)...)
		require.Contains(t, out, "Backup "+names[n]+": Completed")
		require.Contains(t, out, "Upload of "+volume+" for "+names[n]+": Completed")
		require.NoError(t, app.Change(s.ctx))
	}

	t.Log(plugin("chain", volume))
	var images []struct {
		Backup, Kind, Parent, Base string
		Reasons                    []string
		ReadBytes, LogicalBytes    int64
	}
	decode(&images, "chain", volume)
	require.Len(t, images, 2)
	require.Equal(t, "Full", images[0].Kind)
	require.Contains(t, images[0].Reasons, "ForcedFull")
	require.Equal(t, "Incremental", images[1].Kind)
	require.Equal(t, names[0], images[1].Parent)
	require.Less(t, images[1].ReadBytes, images[1].LogicalBytes/10)

	t.Log(plugin("bases", "-o", "wide"))
	var bases []struct {
		Namespace, PVC, Backup string
		Newest                 bool
	}
	decode(&bases, "bases")
	held := map[string]string{}
	for _, b := range bases {
		if b.Newest {
			held[b.Namespace+"/"+b.PVC] = b.Backup
		}
	}
	require.NotEmpty(t, images[1].Base)
	require.Equal(t, names[1], held[volume])

	t.Log(plugin("status", volume))
	require.Equal(t, 2, strings.Count(plugin("status", volume), "Completed"))
	_, err := s.kit.Kubectl(s.ctx, "blockmover", "-n", s.kit.VeleroNamespace, "cancel", names[1])
	require.ErrorContains(t, err, "runs or waits")
	s.checkNothingLeft()
}
