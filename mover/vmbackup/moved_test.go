package vmbackup

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/blockmover/blockmover/internal/kubevirt"
)

// TestHasDisk: a PVC is a disk if a VM has it and a tracker has the VM. Who may not ask says yes.
func TestHasDisk(t *testing.T) {
	vm := func(name, claim string) client.Object {
		u := kubevirt.New(kubevirt.VirtualMachine)
		u.SetNamespace("app")
		u.SetName(name)
		u.Object["spec"] = map[string]any{"template": map[string]any{"spec": map[string]any{"volumes": []any{
			map[string]any{"name": "root", "persistentVolumeClaim": map[string]any{"claimName": claim}},
		}}}}
		return u
	}
	tracker := func(namespace, of string) client.Object {
		u := kubevirt.NewTracker(of)
		u.SetNamespace(namespace)
		u.SetName("tracker-of-" + of)
		return u
	}
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		objects []client.Object
		list    error
		want    bool
		err     error
	}{
		"nothing":                        {},
		"disk":                           {objects: []client.Object{tracker("app", "vm"), vm("vm", "data")}, want: true},
		"the second VM":                  {objects: []client.Object{tracker("app", "a"), vm("a", "x"), tracker("app", "b"), vm("b", "data")}, want: true},
		"a VM that nobody has backed up": {objects: []client.Object{vm("vm", "data")}},
		"another PVC":                    {objects: []client.Object{tracker("app", "vm"), vm("vm", "log")}},
		"another namespace":              {objects: []client.Object{tracker("other", "vm"), vm("vm", "data")}},
		"the VM is gone":                 {objects: []client.Object{tracker("app", "vm")}},
		"no KubeVirt":                    {list: &meta.NoKindMatchError{GroupKind: kubevirt.Tracker.GroupKind()}},
		"no rights":                      {list: apierrors.NewForbidden(schema.GroupResource{Resource: "trackers"}, "", broken), want: true},
		"broken":                         {list: broken, err: broken},
	} {
		t.Run(name, func(t *testing.T) {
			c := fake.NewClientBuilder().WithObjects(tc.objects...).WithInterceptorFuncs(interceptor.Funcs{
				List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
					if _, ok := list.(*unstructured.UnstructuredList); ok && tc.list != nil {
						return tc.list
					}
					return c.List(ctx, list, opts...)
				},
			}).Build()
			got, err := HasDisk(t.Context(), c, client.ObjectKey{Namespace: "app", Name: "data"})
			require.ErrorIs(t, err, tc.err)
			require.Equal(t, tc.want, got)
		})
	}
}
