//! Who is not let in: ids that were used, folders that were lost, folders of another cluster; and who always is.

use crate::nodes::{Cluster, Shape};

/// Exit code of a node that has no place in its cluster.
const EXPELLED: i32 = 78;

#[tokio::test(flavor = "multi_thread")]
async fn used_ids_lost_folders_and_folders_of_other_clusters_are_refused() {
    let mut cluster = Cluster::start().await;
    cluster.client(1).start("a1", "Greet", "").await;

    // A folder that was emptied: the node has forgotten how it voted.
    cluster.kill9(3);
    let kept = cluster.data(3).with_extension("kept");
    std::fs::rename(cluster.data(3), &kept).unwrap();
    let (code, said) = cluster.refused(3).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("node 3 was here before with another data folder"), "{said}");
    assert!(!cluster.data(3).exists(), "a refusal leaves nothing behind");

    // A folder of another cluster: that of a node alone.
    cluster.found_alone(3).await;
    let (code, said) = cluster.refused(3).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("belongs to cluster"), "{said}");
    std::fs::remove_dir_all(cluster.data(3)).unwrap();

    // The folder of another node of the same cluster: its id does not fit, or it is used twice.
    cluster.kill9(2);
    copy(&cluster.data(2), &cluster.data(3));
    let (code, said) = cluster.refused(3).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("belongs to node 2, not to node 3"), "{said}");
    std::fs::remove_dir_all(cluster.data(3)).unwrap();
    cluster.restart(2).await;

    // With the folder that it had, the node is welcome.
    std::fs::rename(&kept, cluster.data(3)).unwrap();
    cluster.restart(3).await;
    cluster.balanced(3).await;
    assert!(cluster.client(3).get("a1").await.is_some());

    // An id is never used again, not even by the same node.
    let output = cluster.operate(1, &["remove-node", "2"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    cluster.gone(1, 2).await;
    cluster.terminate(2).await;
    let (code, said) = cluster.refused(2).await;
    assert_eq!(code, Some(EXPELLED), "{said}");
    assert!(said.contains("node 2 was removed from the cluster"), "{said}");
    std::fs::remove_dir_all(cluster.data(2)).unwrap();
    let (code, said) = cluster.refused(2).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("node 2 was removed, and ids are not used again"), "{said}");
    assert!(cluster.client(3).get("a1").await.is_some());
}

/// Two of five members have met, and nothing can be registered yet; but the lost folder may hold a vote already.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_lost_before_the_cluster_stands_is_refused() {
    let mut cluster = Cluster::prepare(Shape { members: 5, ..Shape::default() }).await;
    cluster.launch(1);
    cluster.launch(2);
    cluster.greeted(2, 1).await;
    cluster.kill9(2);
    let kept = cluster.data(2).with_extension("kept");
    std::fs::rename(cluster.data(2), &kept).unwrap();
    let (code, said) = cluster.refused(2).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("node 2 was here before with another data folder"), "{said}");

    // With its folder it is one of three, and these are enough.
    std::fs::rename(&kept, cluster.data(2)).unwrap();
    cluster.launch(2);
    cluster.launch(3);
    for id in 1..=3 {
        cluster.ready(id).await;
    }
    cluster.client(2).start("a1", "Greet", "").await;
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    let copied = std::process::Command::new("cp").arg("-r").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

/// A limit for clients, however low, keeps no node out.
#[tokio::test(flavor = "multi_thread")]
async fn limits_of_clients_part_no_cluster() {
    let mut cluster = Cluster::prepare(Shape::default()).await;
    for node in &mut cluster.nodes {
        node.args.extend(["--connections=1", "--connections-per-address=1"].map(str::to_owned));
    }
    for id in 1..=3 {
        cluster.launch(id);
    }
    for id in 1..=3 {
        cluster.ready(id).await;
    }
    cluster.balanced(3).await;
    let client = cluster.client(2);
    client.start("a1", "Greet", "").await;
    assert!(client.get("a1").await.is_some());
}
